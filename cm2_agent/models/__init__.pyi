from .byte_tokenizer import END as END
from .byte_tokenizer import PAD as PAD
from .byte_tokenizer import byte_tokenizer as byte_tokenizer
from .local import LocalChatModel as LocalChatModel
from .local import fingerprint as fingerprint
from .openai import openai_compatible as openai_compatible
