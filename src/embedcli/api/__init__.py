"""The public Python API: `embedcli.load(model).encode(texts)` and `embedcli.encode_file(inputs, output)`.

Both run the same engine as the command line. Errors are `embedcli.EmbedcliError`, with a message and a hint.
"""

from embedcli.api.files import FileResult, encode_file
from embedcli.api.model import Model, load
from embedcli.api.mteb_model import MtebModel
from embedcli.api.tables import embed_table

__all__ = ["FileResult", "Model", "MtebModel", "embed_table", "encode_file", "load"]
