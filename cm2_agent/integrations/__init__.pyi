from .reward_functions import art_group_reward as art_group_reward
from .reward_functions import art_reward as art_reward
from .reward_functions import trace_of_chat as trace_of_chat
from .reward_functions import trl_reward as trl_reward
from .reward_functions import verifiers_reward as verifiers_reward
from .reward_functions import verl_reward as verl_reward
from .verdict_feedback import Feedback as Feedback
from .verdict_feedback import Receiver as Receiver
