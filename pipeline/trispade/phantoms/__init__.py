"""Brain-like phantoms: label maps and T1w of people who do not exist, on any grid."""

from trispade.phantoms.dataset import write_phantom_dataset
from trispade.phantoms.phantom import Phantom, make_phantom, phantom_affine
