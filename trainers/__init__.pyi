from .advantage import GroupAdvantages as GroupAdvantages
from .advantage import RolloutAdvantage as RolloutAdvantage
from .advantage import advantages as advantages
from .grpo import GRPO as GRPO
from .preference_pairs import dpo_pairs as dpo_pairs
from .preference_pairs import pairs_of as pairs_of
from .rft import RFT as RFT
from .sft import SFT as SFT
