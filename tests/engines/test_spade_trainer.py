from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    label_map = torch.randint(0, 4, (3, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return {"label_map": label_map, "t1w": torch.rand(3, 1, 32, 32, generator=generator) * 2 - 1}


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copy parameters and buffers, spectral norm's u and v among them."""
    return copy.deepcopy(module.state_dict())


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    after = module.state_dict()
    assert before.keys() == after.keys()
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("amp", [False, True])
def test_a_generator_step_leaves_the_discriminator_unchanged_to_its_last_buffer(build_gan, batch, amp):
    gan = build_gan()
    trainer = gan.trainer([batch], amp=amp)
    trainer.run()  # a discriminator step first, so that gradients and moments are there to go wrong
    before, gradients = snapshot(gan.discriminator), [p.grad.clone() for p in gan.discriminator.parameters()]
    generator_before = snapshot(gan.generator)
    trainer._generator_step(batch["label_map"], batch["t1w"], {})
    assert changed(before, gan.discriminator) == set()
    assert all(torch.equal(p.grad, g) for p, g in zip(gan.discriminator.parameters(), gradients, strict=True))
    parameters = {name for name, _ in gan.generator.named_parameters()}
    assert any(name.endswith("parametrizations.weight.0._u") for name in changed(generator_before, gan.generator))
    assert len(parameters - changed(generator_before, gan.generator)) < 0.2 * len(parameters)


@pytest.mark.parametrize("amp", [False, True])
def test_a_discriminator_step_leaves_the_generator_unchanged_to_its_last_buffer(build_gan, batch, amp):
    gan = build_gan()
    trainer = gan.trainer([batch], amp=amp)
    output: dict[str, torch.Tensor] = {}
    trainer._generator_step(batch["label_map"], batch["t1w"], output)
    before, gradients = snapshot(gan.generator), [p.grad.clone() for p in gan.generator.parameters()]
    discriminator_before = snapshot(gan.discriminator)
    trainer._discriminator_step(batch["label_map"], batch["t1w"], output)
    assert changed(before, gan.generator) == set()
    assert all(torch.equal(p.grad, g) for p, g in zip(gan.generator.parameters(), gradients, strict=True))
    assert {name for name, _ in gan.discriminator.named_parameters()} <= changed(
        discriminator_before, gan.discriminator
    )


def test_the_discriminator_sees_fake_and_real_in_one_batch_once_a_step(build_gan, batch):
    gan = build_gan()
    seen = []
    gan.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append([i.detach().clone() for i in inputs]))
    trainer = gan.trainer([batch])
    trainer.run()
    assert len(seen) == 2
    for label_map, image in seen:
        assert torch.equal(label_map, batch["label_map"])
        assert torch.equal(image[:3], trainer.state.output["pred"])
        assert torch.equal(image[3:], batch["t1w"])


def test_the_generator_paints_once_an_iteration(build_gan, batch):
    gan = build_gan()
    calls = []
    gan.generator.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    gan.trainer([batch] * 2).run()
    assert calls == [True, True]


def test_the_output_holds_every_loss_by_name_and_their_sum(build_gan, batch):
    gan = build_gan()
    trainer = gan.trainer([batch], perceptual=nn.L1Loss(), perceptual_weight=2.0)
    fired = []
    trainer.add_event_handler(IterationEvents.FORWARD_COMPLETED, lambda engine: fired.append("forward"))
    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda engine: fired.append("model"))
    trainer.run()
    output = trainer.state.output
    assert fired == ["forward", "model"]
    torch.testing.assert_close(output["perceptual"], 2.0 * (output["pred"] - batch["t1w"]).abs().mean())
    torch.testing.assert_close(
        output["loss"], output["adversarial"] + output["feature_matching"] + output["perceptual"]
    )
    assert {"discriminator", "logits_real", "logits_fake", "label_map", "t1w"} <= output.keys()
    assert not any(value.requires_grad for value in output.values())


def test_weights_of_the_losses_scale_their_share_alone(build_gan, batch):
    def losses(weight):
        trainer = build_gan().trainer([batch], feature_matching_weight=weight)
        trainer.run()
        return trainer.state.output

    one, ten = losses(1.0), losses(10.0)
    torch.testing.assert_close(ten["feature_matching"], 10 * one["feature_matching"])
    assert torch.equal(ten["adversarial"], one["adversarial"])


def test_training_pulls_the_painting_towards_the_scan(build_gan, batch):
    gan = build_gan()
    distances = []
    trainer = gan.trainer([batch] * 40)
    batch["t1w"].fill_(0.5)

    @trainer.on(Events.ITERATION_COMPLETED)
    def measure(engine):
        distances.append(float((engine.state.output["pred"] - batch["t1w"]).abs().mean()))

    trainer.run()
    assert distances[-1] < 0.7 * distances[0]


def test_amp_computes_in_half_precision_and_keeps_weights_and_losses_single(build_gan, batch):
    gan = build_gan()
    trainer = gan.trainer([batch], amp=True)
    trainer.run()
    assert trainer.state.output["pred"].dtype == torch.bfloat16
    assert trainer.state.output["loss"].dtype == torch.float32
    assert {p.dtype for p in gan.generator.parameters()} == {torch.float32}
    reference = build_gan().trainer([batch])
    reference.run()
    torch.testing.assert_close(trainer.state.output["loss"], reference.state.output["loss"], rtol=0.05, atol=0.05)


def test_after_a_run_both_networks_can_be_trained_on(build_gan, batch):
    gan = build_gan()
    gan.trainer([batch]).run()
    assert gan.generator.training
    assert gan.discriminator.training
    assert all(p.requires_grad for p in gan.discriminator.parameters())


def test_it_is_a_supervised_trainer_whose_network_is_the_generator(build_gan, batch):
    gan = build_gan()
    trainer = gan.trainer([batch])
    assert isinstance(trainer, SupervisedTrainer)
    assert trainer.network is gan.generator
    assert trainer.optimizer is gan.generator_optimizer


def test_the_discriminator_sees_the_label_slice_that_is_painted_and_not_its_neighbours(build_gan, batch):
    gan = build_gan(label_slices=3)
    seen = []
    gan.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    label_maps = torch.cat([batch["label_map"].flip(2), batch["label_map"], batch["label_map"].flip(3)], dim=1)
    trainer = gan.trainer([batch | {"label_map": label_maps}])
    trainer.run()
    assert trainer.state.output["pred"].shape == (3, 1, 32, 32)
    assert len(seen) == 2
    assert all(torch.equal(label_map, batch["label_map"]) for label_map in seen)
