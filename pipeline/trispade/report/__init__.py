"""What a person looks at: figures, comparisons, the demonstration."""

from trispade.report.comparison import Comparison
from trispade.report.figure import save_triplanar_figure
