from embedcli.api import Model as Model
from embedcli.api import MtebModel as MtebModel
from embedcli.api import encode_file as encode_file
from embedcli.api import load as load
from embedcli.contracts import EmbedcliError as EmbedcliError
from embedcli.contracts import InputError as InputError
from embedcli.contracts import ModelError as ModelError
from embedcli.contracts import OutputError as OutputError
from embedcli.contracts import ResumeError as ResumeError
from embedcli.contracts import UsageError as UsageError

__version__: str
__all__: list[str]
