from __future__ import annotations

import copy

import pytest
import torch

from trispade.engines import save_checkpoint
from trispade.engines.style import (
    WithDrawnStyles,
    case_of_slices,
    generator_architecture,
    make_style_encoder,
    trainable_parameters,
)
from trispade.errors import InputError
from trispade.losses import StyleDivergence
from trispade.networks import SpadeGenerator


@pytest.fixture
def batch() -> dict:
    """Four slices of two cases, not in order."""
    generator = torch.Generator().manual_seed(1)
    label_map = torch.randint(0, 4, (4, 1, 32, 32), generator=generator, dtype=torch.uint8)
    t1w = torch.rand(4, 1, 32, 32, generator=generator) * 2 - 1
    return {"label_map": label_map, "t1w": t1w, "case_id": ["b", "a", "b", "b"]}


def changed(before: dict, module: torch.nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def styles_seen(gan, batch, **options) -> tuple[list[torch.Tensor], dict]:
    seen = []
    gan.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    trainer = gan.trainer([batch], **options)
    trainer.run()
    return seen, trainer.state.output


@pytest.mark.parametrize("amp", [False, True])
def test_slices_of_one_volume_share_a_code_and_volumes_do_not(build_gan, batch, amp):
    (styles,), output = styles_seen(build_gan(style_dim=3), batch, amp=amp)
    assert (styles.shape, styles.dtype) == ((4, 3), torch.float32)
    assert torch.equal(styles[[0, 2, 3]], styles[:1].expand(3, -1))
    assert (styles[0] - styles[1]).abs().min() > 1e-4
    assert torch.isfinite(output["loss"])


def test_the_divergence_is_that_of_the_mean_estimates_of_each_volume(build_gan, batch):
    gan = build_gan(style_dim=3)
    with torch.no_grad():
        means, log_variances = gan.encoder(batch["t1w"])
    cases = [[0, 2, 3], [1]]
    expected = StyleDivergence()(
        *(torch.stack([x[case].mean(dim=0) for case in cases]) for x in (means, log_variances))
    )
    _, output = styles_seen(gan, batch)
    torch.testing.assert_close(output["style_divergence"], 0.05 * expected)
    parts = output["adversarial"] + output["feature_matching"] + output["style_divergence"]
    torch.testing.assert_close(output["loss"], parts)


def test_the_generators_step_teaches_the_encoder_and_leaves_the_discriminator_unchanged(build_gan, batch):
    gan = build_gan(style_dim=3)
    trainer = gan.trainer([batch])
    before = copy.deepcopy(gan.discriminator.state_dict()), copy.deepcopy(gan.encoder.state_dict())
    trainer._generator_step(batch["label_map"], batch["t1w"], {}, batch["case_id"])
    assert changed(before[0], gan.discriminator) == set()
    assert {"mean.weight", "log_variance.weight", "layers.0.0.weight"} <= changed(before[1], gan.encoder)


def test_the_discriminators_step_leaves_generator_and_encoder_unchanged(build_gan, batch):
    gan = build_gan(style_dim=3)
    trainer, output = gan.trainer([batch]), {}
    trainer._generator_step(batch["label_map"], batch["t1w"], output, batch["case_id"])
    before = copy.deepcopy(gan.generator.state_dict()), copy.deepcopy(gan.encoder.state_dict())
    trainer._discriminator_step(batch["label_map"], batch["t1w"], output)
    assert changed(before[0], gan.generator) == changed(before[1], gan.encoder) == set()


def test_without_style_no_random_number_is_drawn_and_no_loss_added(build_gan, batch):
    gan = build_gan()
    state = torch.get_rng_state()
    (style,), output = styles_seen(gan, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert style is None
    assert "style_divergence" not in output
    assert make_style_encoder(0, 4, "cpu") is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def encoder_file(tmp_path, build_gan):
    encoder = build_gan(seed=5, style_dim=3).encoder
    record = {"finished": True}
    save_checkpoint({"objects": {"encoder": encoder.state_dict()}, "record": record}, tmp_path / "last.pt")
    return tmp_path / "last.pt"


def test_an_encoder_of_another_plane_is_taken_over_and_does_not_change(build_gan, batch, encoder_file, caplog):
    gan, other = build_gan(style_dim=3, encoder_file=encoder_file), build_gan(seed=5, style_dim=3).encoder
    assert changed(other.state_dict(), gan.encoder) == set()
    assert len(trainable_parameters([gan.encoder, None])) == 0
    generator = copy.deepcopy(gan.generator.state_dict())
    styles_seen(gan, batch)
    assert changed(other.state_dict(), gan.encoder) == set()
    assert "style.weight" in changed(generator, gan.generator)
    assert caplog.text == ""


def test_an_encoder_that_is_still_learning_is_warned_of(tmp_path, encoder_file, caplog):
    state = torch.load(encoder_file)["objects"]
    save_checkpoint({"objects": state, "record": {"finished": False}}, encoder_file)
    make_style_encoder(3, 1, "cpu", encoder_file)
    assert "last.pt: not trained to its end" in caplog.text


def test_an_encoder_file_that_does_not_fit_is_one_clear_line(tmp_path, encoder_file):
    with pytest.raises(InputError, match=r"style encoder of .*last.pt: expected .* of shape .* weights differ"):
        make_style_encoder(4, 1, "cpu", encoder_file)
    with pytest.raises(InputError, match=r"style_encoder_file: expected a style_dim above 0 beside it, got 0. Set"):
        make_style_encoder(0, 1, "cpu", encoder_file)
    save_checkpoint({"objects": {}}, tmp_path / "plain.pt")
    with pytest.raises(
        InputError, match=r"plain.pt: expected a checkpoint with a style encoder, got one without. Train"
    ):
        make_style_encoder(3, 1, "cpu", tmp_path / "plain.pt")


def test_a_record_tells_of_a_style_only_where_there_is_one():
    assert generator_architecture(4, 8, None, 0) == {"ngf": 4, "hidden": 8, "max_channels": None}
    assert generator_architecture(4, 8, None, 3)["style_dim"] == 3


def test_cases_are_numbered_by_first_occurrence():
    assert case_of_slices(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


@torch.no_grad()
def test_norms_are_measured_over_styles_that_are_the_same_at_each_call(enliven):
    styled = enliven(SpadeGenerator(4, 1, 2, 4, 8, style_dim=3)).eval()
    slices = torch.randint(0, 4, (1, 1, 32, 32)).expand(3, -1, -1, -1)
    state = torch.get_rng_state()
    painted = WithDrawnStyles(styled)(slices)
    assert (painted[0] - painted[1]).abs().max() > 1e-4
    assert torch.equal(WithDrawnStyles(styled)(slices), painted)
    assert torch.equal(torch.get_rng_state(), state)
    plain = enliven(SpadeGenerator(4, 1, 2, 4, 8)).eval()
    assert torch.equal(WithDrawnStyles(plain)(slices), plain(slices))
