from .local import LocalChatModel as LocalChatModel
from .openai import EndpointChatModel as EndpointChatModel
from .openai import openai_compatible as openai_compatible
from .tokenizer import END as END
from .tokenizer import PAD as PAD
from .tokenizer import byte_tokenizer as byte_tokenizer
from .weights import fingerprint as fingerprint
