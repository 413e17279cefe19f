"""What a person looks at: figures, comparisons, the demonstration."""

from trispade.report.comparison import StoreMethods, what_made_them
from trispade.report.evaluation import Evaluation
from trispade.report.figure import save_triplanar_figure
