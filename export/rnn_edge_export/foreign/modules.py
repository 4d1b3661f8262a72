"""A user's own recurrent modules: what they weigh, and running them as they are, with the state explicit.

Any number of ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` (or their ``…Cell`` forms), each of any number of layers. Everything
here works on copies on the CPU in float32; the user's modules are left as they are.

Symbols in shape comments: T steps, B streams, V vocabulary, D input of a module, P output.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from rnn_edge.errors import InvalidValueError
from rnn_edge.manifest import Cell
from rnn_edge_export.foreign.layers import LayerWeights
from rnn_edge_export.layers import LayerState, state_names

# One state for each layer, from the bottom up.
State = list[LayerState]

Module = TypeVar("Module", bound=nn.Module)

_CELLS: dict[type[nn.Module], Cell] = {
    nn.LSTM: "lstm",
    nn.GRU: "gru",
    nn.RNN: "rnn",
    nn.LSTMCell: "lstm",
    nn.GRUCell: "gru",
    nn.RNNCell: "rnn",
}


def private_copy(module: Module) -> Module:
    """A copy on the CPU, in float32, that neither trains nor drops anything."""
    return copy.deepcopy(module).cpu().float().requires_grad_(False).eval()


def is_recurrent(module: nn.Module) -> bool:
    """Whether it is one of the modules that this project knows."""
    return isinstance(module, tuple(_CELLS))


def cell_of(module: nn.Module) -> Cell:
    """The kind of a recurrent module.

    Raises:
        InvalidValueError: it is none.
    """
    if is_recurrent(module):
        return next(cell for kind, cell in _CELLS.items() if isinstance(module, kind))
    known = ", ".join(f"nn.{kind.__name__}" for kind in _CELLS)
    raise InvalidValueError(f"{_name(module)} is no recurrent module", f"give {known}, or several of one kind")


def flatten_stack(rnn: nn.Module | Iterable[nn.Module]) -> list[nn.Module]:
    """The recurrent modules in order: of one, or of a list, ``nn.ModuleList`` or ``nn.Sequential``, without dropout.

    Raises:
        InvalidValueError: there are none, one is something else or reads backwards, kinds are mixed, or a width is not
            that of the module below.
    """
    given = [rnn] if isinstance(rnn, nn.Module) and not isinstance(rnn, nn.ModuleList | nn.Sequential) else list(rnn)
    stack = [module for module in given if not isinstance(module, nn.Dropout)]
    if not stack:
        raise InvalidValueError("there is no recurrent module", "give an nn.LSTM, nn.GRU or nn.RNN, or several")
    cells = [cell_of(module) for module in stack]
    if len(set(cells)) > 1:
        raise InvalidValueError(
            f"the layers mix {' and '.join(dict.fromkeys(cells))}, and a bundle names one cell",
            "give layers of one kind",
        )
    for place, module in enumerate(stack):
        if getattr(module, "bidirectional", False):
            raise InvalidValueError(
                f"module {place} is bidirectional: it needs the end of a text before its beginning",
                "train it with bidirectional=False; only the encoder of a translator may read from both ends",
            )
        below = output_width(stack[place - 1]) if place else module.input_size
        if module.input_size != below:
            raise InvalidValueError(
                f"module {place} reads {module.input_size} values, the one below gives {below}",
                "give the modules from the bottom up",
            )
    return stack


def output_width(module: nn.Module) -> int:
    """P of one direction."""
    width: int = getattr(module, "proj_size", 0) or module.hidden_size  # type: ignore[assignment]
    return width


def layer_count(module: nn.Module) -> int:
    """Layers, not counting directions."""
    count: int = getattr(module, "num_layers", 1)
    return count


def layer_weights(module: nn.Module, layer: int = 0, *, backward: bool = False) -> LayerWeights:
    """One layer of a module; absent biases are zeros."""
    suffix = f"_l{layer}{'_reverse' * backward}" if isinstance(module, nn.RNNBase) else ""

    def weight(name: str) -> Tensor:
        found: Tensor = getattr(module, f"{name}{suffix}")
        return found.detach()

    given = weight("weight_ih")
    zeros = given.new_zeros(len(given))
    return LayerWeights(
        cell_of(module),
        given,
        weight("weight_hh"),
        weight("bias_ih") if module.bias else zeros,
        weight("bias_hh") if module.bias else zeros,
        projection=weight("weight_hr") if getattr(module, "proj_size", 0) else None,
        relu=getattr(module, "nonlinearity", "") == "relu",
    )


def run_module(module: nn.Module, x: Tensor, state: State) -> tuple[Tensor, State]:
    """x [T, B, D], the states of the module's layers → y [T, B, P], the next states."""
    if not isinstance(module, nn.RNNBase):
        return _run_cell(module, x, state[0])
    given = tuple(torch.stack(kind) for kind in zip(*state, strict=True))  # each [layers, B, width]
    first = module.batch_first
    y, new = module(x.transpose(0, 1) if first else x, given if len(given) == 2 else given[0])
    kinds = new if isinstance(new, tuple) else (new,)
    return (y.transpose(0, 1) if first else y), list(zip(*(kind.unbind() for kind in kinds), strict=True))


def _run_cell(cell: nn.Module, x: Tensor, state: LayerState) -> tuple[Tensor, State]:
    outputs = []
    for step in x:
        new = cell(step, state if len(state) == 2 else state[0])
        state = new if isinstance(new, tuple) else (new,)
        outputs.append(state[0])
    return torch.stack(outputs), [state]


class ModuleLanguageModel(nn.Module):
    """A user's embedding, recurrent modules and output layer, run as they are: what a step graph is compared with."""

    def __init__(self, embedding: nn.Embedding, stack: Sequence[nn.Module], output: nn.Linear) -> None:
        super().__init__()
        self.embedding, self.stack, self.output = embedding, nn.ModuleList(stack), output

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens int64 [T, B]; state as ``zero_state`` makes it → logits [T, B, V], next state."""
        x, next_state = self.embedding(tokens), []
        rest = list(state)
        for module in self.stack:
            count = layer_count(module)
            x, new = run_module(module, x, rest[:count])
            next_state += new
            rest = rest[count:]
        return self.output(x), next_state

    def layers(self) -> list[LayerWeights]:
        """The weights of every layer from the bottom up."""
        return [layer_weights(module, layer) for module in self.stack for layer in range(layer_count(module))]

    def zero_state(self, batch: int) -> State:
        """Zeros for B streams."""
        return [tuple(torch.zeros(batch, width) for width in layer.state_widths) for layer in self.layers()]

    def state_names(self) -> list[str]:
        """Names of the state tensors in flat order: h0, c0, h1, c1, …"""
        layers = self.layers()
        return state_names(layers[0].cell, len(layers))


def embedding_table(embedding: nn.Embedding) -> Tensor:
    """What the embedding looks up, [V, D]: with ``max_norm`` each row as it is after its first use."""
    table = embedding.weight.detach()
    if embedding.max_norm is None:
        return table
    norms = table.norm(p=embedding.norm_type, dim=1, keepdim=True)
    return torch.where(norms > embedding.max_norm, table * (embedding.max_norm / (norms + 1e-7)), table)


def require(module: nn.Module, kind: type[Module], place: str) -> Module:
    """Raises InvalidValueError for a module of another kind."""
    if not isinstance(module, kind):
        raise InvalidValueError(
            f"{place} is {_name(module)}, not nn.{kind.__name__}",
            f"give the nn.{kind.__name__} alone; what else a step computes would be lost",
        )
    return module


def module_parameters(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Their parameters, tied ones once."""
    found = {parameter.data_ptr(): parameter for module in modules for parameter in module.parameters()}
    return list(found.values())


def check_finite(modules: Mapping[str, nn.Module]) -> None:
    """Raises InvalidValueError for a weight that is not a number, by its name."""
    for place, module in modules.items():
        for name, parameter in module.named_parameters():
            if not parameter.isfinite().all():
                raise InvalidValueError(
                    f"{place}.{name} holds values that are not finite", "export weights from before training diverged"
                )


def _name(module: object) -> str:
    return f"nn.{type(module).__name__}" if type(module).__module__.startswith("torch.nn") else type(module).__name__
