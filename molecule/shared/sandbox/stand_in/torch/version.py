# The quotes are those of torch's own file: others read it as text.
# fmt: off
from typing import Optional

__all__ = ['__version__', 'cuda', 'debug', 'git_version', 'hip', 'xpu']
__version__ = '@VERSION@'
debug = False
cuda: Optional[str] = '@CUDA@'
git_version = 'SIMULATED by the gpufleet sandbox'
hip: Optional[str] = None
xpu: Optional[str] = None
