"""Training with early stopping: the loop behind every experiment."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gatkernels.experiments.batches import Batch, Batches, build_graph, f1_counts
from gatkernels.experiments.datasets import Dataset
from gatkernels.experiments.presets import Preset
from gatkernels.experiments.sharded import build_sharded, own_rows
from gatkernels.experiments.world import World
from gatkernels.models import GAT, GCN, MLP, GraphTransformer

CURVES = ("train_loss", "train_score", "val_loss", "val_score")


@dataclass(frozen=True)
class Options:
    """How to train, where that does not decide what is trained."""

    device: str = "cpu"
    backend: str = "auto"
    amp: bool = False
    compile: bool = False
    partition: str = "range"  # of a graph among processes
    exchange: str = "auto"


@dataclass(frozen=True)
class RunResult:
    """One training run; ``state`` holds the best weights, on the CPU.

    Scores lie in [0, 1] (``Dataset.metric`` names them). ``test_score_exact`` leaves out nodes
    whose labels are estimates, where there are any. ``stop`` is "epochs", "patience" or
    "interrupted".
    """

    seed: int
    test_score: float
    test_loss: float
    test_score_exact: float | None
    val_score: float
    best_epoch: int
    epochs: int
    seconds: float
    ms_per_epoch: float
    stop: str
    curves: dict[str, list[float]]
    state: dict[str, Tensor]

    @property
    def interrupted(self) -> bool:
        return self.stop == "interrupted"


class Epoch(NamedTuple):
    """What a progress display is told after each epoch."""

    number: int
    train_loss: float
    train_score: float
    val_loss: float
    val_score: float
    waited: int  # epochs without improvement


OnEpoch = Callable[[Epoch], None]
Model = Callable[[Preset, Dataset, str], nn.Module]


class EarlyStopping:
    """Counts epochs without a new best; ``update`` says whether to keep the weights.

    ``acc_or_loss`` is the rule of the paper's code: reaching the best score or the best loss
    restarts the count, and weights are kept where both are reached at once.
    """

    def __init__(self, monitor: str, patience: int) -> None:
        self.monitor = monitor
        self.patience = patience
        self.waited = 0
        self.best_score = float("-inf")
        self.best_loss = float("inf")

    def update(self, score: float, loss: float) -> bool:
        score_reached, loss_reached = score >= self.best_score, loss <= self.best_loss
        if self.monitor == "acc_or_loss":
            progress, keep = score_reached or loss_reached, score_reached and loss_reached
            self.best_score = max(score, self.best_score)
            self.best_loss = min(loss, self.best_loss)
        else:
            if self.monitor == "loss":
                keep = loss < self.best_loss
            else:  # the loss decides between equal scores
                keep = (score, -loss) > (self.best_score, -self.best_loss)
            progress = keep
            if keep:
                self.best_score, self.best_loss = score, loss
        self.waited = 0 if progress else self.waited + 1
        return keep

    @property
    def exhausted(self) -> bool:
        return self.waited >= self.patience


def build_model(preset: Preset, dataset: Dataset, backend: str = "auto") -> nn.Module:
    """The preset's network for a data set, on the CPU, with fresh weights."""
    sizes = (dataset.num_features, preset.hidden, dataset.num_classes)
    if preset.model == "gcn":
        return GCN(*sizes, preset.dropout, layers=preset.layers)
    if preset.model == "mlp":
        return MLP(*sizes, preset.dropout, layers=preset.layers)
    if preset.model == "transformer":
        return GraphTransformer(
            *sizes,
            heads=preset.heads,
            out_heads=preset.out_heads,
            dropout=preset.dropout,
            layers=preset.layers,
            residual=preset.residual,
            backend=backend,
        )
    return GAT(
        *sizes,
        heads=preset.heads,
        out_heads=preset.out_heads,
        dropout=preset.dropout,
        layers=preset.layers,
        version=2 if preset.model == "gatv2" else 1,
        residual=preset.residual,
        feature_dropout=preset.feature_dropout,
        negative_slope=preset.negative_slope,
        backend=backend,
    )


class Training:
    """One run, epoch by epoch: the model, its optimizer, and where the run stands.

    ``state_dict`` after any epoch holds all that the further epochs depend on, the random
    generators too: a run that continues from it gives the same curves as one never cut.

    Args:
        preset: Hyper-parameters.
        dataset: Nodes, labels and split; moved to the device.
        seed: Seeds torch's generators before the model is built.
        options: Device, backend, mixed precision, compilation.
        model: Builds the module from preset, data set and backend; its forward takes features and
            what ``graph`` builds, and returns logits ``[N, num_classes]``.
        graph: Builds the module's second input from edge index and number of nodes.
        world: The processes that train together; where they are several, each graph is shared out
            among them.
    """

    def __init__(
        self,
        preset: Preset,
        dataset: Dataset,
        seed: int = 0,
        options: Options | None = None,
        *,
        model: Model = build_model,
        graph: Callable[[Tensor, int], Any] = build_graph,
        world: World | None = None,
    ) -> None:
        self.preset, self.seed = preset, seed
        self.options = options or Options()
        self.world = world or World(device=self.options.device)
        self.device = torch.device(self.world.device)
        self.data = dataset.to(self.device)
        self.batches = self._batches(graph)
        torch.manual_seed(seed)
        self.model = model(preset, self.data, self.options.backend).to(self.device)
        compiled: Any = torch.compile(self.model) if self.options.compile else self.model
        self.forward: Any = self.world.wrap(compiled)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=preset.lr, weight_decay=preset.weight_decay, fused=True
        )
        self.stopping = EarlyStopping(preset.monitor, preset.patience)
        self._weights = list(self.model.state_dict().values())
        self._best = [weight.clone() for weight in self._weights]
        self.best_epoch = 0
        self.rows: list[list[float]] = []
        self.times: list[float] = []

    def _batches(self, graph: Callable[[Tensor, int], Any]) -> Batches:
        if self.world.size == 1:
            return Batches(self.preset, self.data, graph)
        how = self.world, self.options.partition, self.options.exchange
        build = partial(build_sharded, *how)
        return Batches(self.preset, self.data, build, own_rows, self.world.of_first)

    @property
    def epoch(self) -> int:
        return len(self.rows)

    @property
    def finished(self) -> bool:
        return self.stopping.exhausted or self.epoch >= self.preset.epochs

    def step(self) -> Epoch:
        """Train for one epoch, then validate."""
        start = time.perf_counter()
        self.model.train()
        self._set_rate()
        self.world.draw_apart(self.seed, self.epoch)
        losses, counts = [], []
        for batch in self.batches.training():
            self.optimizer.zero_grad()
            loss, _ = batch.loss(logits := self._logits(batch))
            # Of several processes, gradients are averaged; the loss is a sum over them.
            torch.autograd.backward(loss if self.world.size == 1 else loss * self.world.size)
            self.optimizer.step()
            losses.append(loss.detach())
            if batch.nodes is None:
                counts.append(batch.loss(logits.detach())[1])
        val_loss, val_count, train_count = self._validate()
        train_count = torch.stack(counts).sum(0) if counts else train_count
        # One transfer for all, so that a device is waited for once an epoch.
        values = [torch.stack(losses).mean(), *train_count, val_loss, *val_count]
        row = self.world.sum(torch.stack([value.double() for value in values])).tolist()
        row = [row[0], row[1] / max(row[2], 1.0), row[3], row[4] / max(row[5], 1.0)]
        self.rows.append(row)
        if self.stopping.update(score=row[3], loss=row[2]):
            torch._foreach_copy_(self._best, self._weights)
            self.best_epoch = self.epoch
        self.times.append(time.perf_counter() - start)
        return Epoch(self.epoch, row[0], row[1], row[2], row[3], self.stopping.waited)

    def _set_rate(self) -> None:
        rate = self.preset.lr
        if self.preset.schedule == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * self.epoch / self.preset.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _logits(self, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
            logits: Tensor = self.forward(batch.x, batch.graph)
        return logits

    @torch.no_grad()
    def _validate(self) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and counts on the validation nodes, counts on the training nodes of its graph."""
        self.model.eval()
        batch = self.batches.part("val")
        logits = self._logits(batch)
        loss, counts = batch.loss(logits)
        if batch.nodes is None:
            return loss, counts, counts
        return loss, counts, self.batches.part("train").loss(logits)[1]

    def result(self, stop: str) -> RunResult:
        """Test the best weights; the run itself may go on."""
        model = copy.deepcopy(self.model).eval()
        for weight, best in zip(model.state_dict().values(), self._best, strict=True):
            weight.copy_(best)
        batch = self.batches.part("test")
        with torch.no_grad():
            logits = model(batch.x, batch.graph)
            loss, counts = (self.world.sum(value) for value in batch.loss(logits))
            exact = None
            if batch.exact is not None:
                right = f1_counts(logits[batch.exact], batch.y[batch.exact])
                exact = _quotient(self.world.sum(right))
        warm = self.times[5:] or self.times
        return RunResult(
            seed=self.seed,
            test_score=_quotient(counts),
            test_loss=float(loss),
            test_score_exact=exact,
            val_score=self.rows[self.best_epoch - 1][3],
            best_epoch=self.best_epoch,
            epochs=self.epoch,
            seconds=sum(self.times),
            ms_per_epoch=1e3 * statistics.median(warm),
            stop=stop,
            curves={name: [row[i] for row in self.rows] for i, name in enumerate(CURVES)},
            state={name: value.cpu() for name, value in model.state_dict().items()},
        )

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "seed": self.seed,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self._best,
            "best_epoch": self.best_epoch,
            "rows": self.rows,
            "times": self.times,
            "stopping": (
                self.stopping.waited,
                self.stopping.best_score,
                self.stopping.best_loss,
            ),
            "generator": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["device_generator"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch._foreach_copy_(self._best, state["best"])
        self.best_epoch = state["best_epoch"]
        self.rows, self.times = list(state["rows"]), list(state["times"])
        self.stopping.waited, self.stopping.best_score, self.stopping.best_loss = state["stopping"]
        torch.set_rng_state(state["generator"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_generator"].cpu(), self.device)


def _quotient(counts: Tensor) -> float:
    part, whole = counts.tolist()
    return float(part / max(whole, 1))


def train(
    preset: Preset,
    dataset: Dataset,
    seed: int = 0,
    options: Options | None = None,
    *,
    on_epoch: OnEpoch | None = None,
) -> RunResult:
    """Train until validation stops improving; test the best weights once.

    Arguments as in :class:`Training`; ``on_epoch`` is called after each epoch, outside the
    measured time.
    """
    run = Training(preset, dataset, seed, options)
    while not run.finished:
        epoch = run.step()
        if on_epoch is not None:
            on_epoch(epoch)
    return run.result("patience" if run.stopping.exhausted else "epochs")
