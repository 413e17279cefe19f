from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine

from trispade.engines import StopAtBadNumbers, TrainingState, WatchDiscriminator, load_checkpoint
from trispade.errors import InputError


def train(handler, epochs: list[dict[str, list[float]]]) -> Engine:
    """Run an engine whose iterations put out the given numbers, by epoch and name."""
    length = len(next(iter(epochs[0].values())))

    def step(engine, batch):
        epoch, place = divmod(engine.state.iteration - 1, length)
        numbers = {name: torch.tensor(values[place]) for name, values in epochs[epoch].items()}
        return {"pred": torch.full((2, 2), float("nan")), **numbers}  # of an image, no number is watched

    engine = Engine(step)
    handler.attach(engine)
    engine.run(range(length), max_epochs=len(epochs))
    return engine


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_a_loss_that_is_no_number_ends_the_run_at_its_iteration_and_is_named(value, told):
    epochs = [{"loss": [1.0, 2.0], "adversarial": [0.5, 0.5]}, {"loss": [1.0, value], "adversarial": [0.5, 0.5]}]
    with pytest.raises(
        InputError, match=rf"iteration 4 \(epoch 2\): expected finite losses, got loss {told}. The last good checkpoint"
    ):
        train(StopAtBadNumbers(), epochs)


def test_finite_losses_pass():
    assert train(StopAtBadNumbers(), [{"loss": [1e30, -1e30]}]).state.iteration == 2


def gan_epoch(real: float, fake: float, features: float, spread: float = 0.3) -> dict[str, list[float]]:
    """Two iterations around the given means, with the hinge loss of logits that are the same everywhere."""
    loss = max(0.0, 1 - real) + max(0.0, 1 + fake)
    means = {"logits_real": real, "logits_fake": fake, "discriminator": loss, "feature_matching": features}
    return {name: [mean - spread * mean, mean + spread * mean] for name, mean in means.items()}


HEALTHY = [gan_epoch(0.01, -0.01, 2.2), gan_epoch(0.05, -0.05, 1.5), gan_epoch(0.2, -0.2, 4.0)]


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (gan_epoch(1.5, -1.4, 4.0), r"epoch 4: logits 1.5 for real and -1.4 .* has won .* a lower discriminator_rate"),
        (gan_epoch(0.01, -0.02, 4.0), r"no longer tells them apart \(it did by 0.4\). Try a higher discriminator_rate"),
        (gan_epoch(0.2, -0.2, 0.01), r"feature matching 0.01: the discriminator sees them alike \(it was 4\)"),
    ],
)
def test_a_discriminator_of_no_use_is_warned_of_once_and_the_run_goes_on(caplog, last, message):
    with caplog.at_level(logging.WARNING):
        engine = train(WatchDiscriminator(), [*HEALTHY, last, HEALTHY[-1]])
    assert engine.state.epoch == 5
    assert len(caplog.records) == 1
    assert caplog.records[0].message.startswith("epoch 4: ")
    with pytest.raises(InputError, match=message):
        raise InputError(caplog.records[0].message)


def test_a_young_or_healthy_discriminator_is_not_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        train(WatchDiscriminator(), [*HEALTHY[:2], *HEALTHY, gan_epoch(0.1, -0.05, 2.0)])
    assert caplog.text == ""


def test_a_discriminator_that_learns_nothing_beside_a_trained_generator_is_warned_of(caplog):
    nothing = gan_epoch(0.0604, 0.0602, 0.1, spread=0.0)
    message = "has learnt nothing yet: the other losses alone train the generator. Give it that of another training: "
    with caplog.at_level(logging.WARNING):
        train(WatchDiscriminator(), [nothing, nothing, HEALTHY[2], nothing | HEALTHY[1]])
    assert [record.message[:8] for record in caplog.records] == ["epoch 2:"]
    assert message in caplog.text


def test_a_real_discriminator_step_has_all_that_is_watched(build_gan, caplog):
    gan = build_gan()
    batch = {"label_map": torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "t1w": torch.zeros(2, 1, 32, 32)}
    watch = WatchDiscriminator()
    gan.trainer([batch], train_handlers=[StopAtBadNumbers(), watch]).run()
    assert watch.largest_features > 0
    assert watch.count == 1


@pytest.mark.parametrize("where", ["weights", "optimizer"])
def test_weights_that_went_wrong_are_not_saved_over_good_ones(tmp_path, where):
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = TrainingState(tmp_path, {"network": network, "optimizer": optimizer}, {}, SimpleNamespace())
    state.trainer = SimpleNamespace(
        state=SimpleNamespace(device=torch.device("cpu"), iteration=1, epoch_length=1, max_epochs=9)
    )
    state.save(None)
    state.trainer.state.iteration = 2
    tensor = network.weight.data if where == "weights" else optimizer.state[network.weight]["exp_avg"]
    tensor[0, 1] = float("nan")
    name = "network" if where == "weights" else "optimizer"
    with pytest.raises(
        InputError, match=f"finite numbers in the state of the {name}, got NaN or infinity at iteration 2, which is not"
    ):
        state.save(None)
    assert load_checkpoint(tmp_path / "last.pt")["iteration"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
