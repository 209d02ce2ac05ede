from embedcli.api import FileResult as FileResult
from embedcli.api import Model as Model
from embedcli.api import MtebModel as MtebModel
from embedcli.api import embed_table as embed_table
from embedcli.api import encode_file as encode_file
from embedcli.api import load as load
from embedcli.core.errors import EmbedcliError as EmbedcliError
from embedcli.core.errors import InputError as InputError
from embedcli.core.errors import ModelError as ModelError
from embedcli.core.errors import OutputError as OutputError
from embedcli.core.errors import ResumeError as ResumeError
from embedcli.core.errors import UsageError as UsageError

__version__: str
__all__: list[str]
