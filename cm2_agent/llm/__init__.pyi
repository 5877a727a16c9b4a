from .limits import RateLimits as RateLimits
from .prices import Price as Price
from .providers import language_model as language_model
from .providers import openai_model as openai_model
