from .app import TOOLS as TOOLS
from .app import build_graph as build_graph
from .order_desk import OrderDesk as OrderDesk
from .order_desk import open_desk as open_desk
from .pipeline import support_checklist as support_checklist
from .pipeline import verify as verify
from .tasks import heldout_tasks as heldout_tasks
from .tasks import training_tasks as training_tasks
