"""The Fréchet distance against its closed form, and the feature network's sense of motion."""

import numpy as np
import pytest
import tiny
import torch

from vidcm.cli import export
from vidcm.errors import UsageError, VidcmError
from vidcm.lpc.attribute_naming import AttributeNaming, frame_order
from vidcm.lpc.attribute_net import PLAYBACK, AttributeNet
from vidcm.lpc.features import BUNDLED, LpcFeatures, release_features
from vidcm.lpc.naming_task import HELDOUT_SEED, renew_statistics
from vidcm.media.pixels import to_video
from vidcm.metrics.frechet import frechet_distance, gaussian_distance
from vidcm.rng import SampleRng
from vidcm.store import read_card, save_model


def covariance(rng: np.random.Generator, d: int) -> np.ndarray:
    a = rng.normal(size=(d, d))
    return a @ a.T + 0.1 * np.eye(d)


def test_diagonal_gaussians():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    gap = np.array([1.0, -2.0, 0.5])
    expected = gap @ gap + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert gaussian_distance(np.zeros(3), np.diag(a), gap, np.diag(b)) == pytest.approx(expected)


def test_two_dimensions_have_a_closed_form():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = covariance(rng, 2), covariance(rng, 2)
        product = a @ b
        root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
        expected = np.trace(a) + np.trace(b) - 2 * root
        assert gaussian_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(expected)


def test_samples_approach_the_formula_and_never_the_sign_of_rounding():
    rng = np.random.default_rng(0)
    a, b, gap = covariance(rng, 5), covariance(rng, 5), rng.normal(size=5)
    x = rng.multivariate_normal(np.zeros(5), a, 40000)
    y = rng.multivariate_normal(gap, b, 40000)
    assert frechet_distance(x, y) == pytest.approx(
        gaussian_distance(np.zeros(5), a, gap, b), rel=0.03
    )
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x))
    assert 0 <= frechet_distance(x, x) < 1e-9


def test_fewer_samples_than_features_are_fine_and_biased_upwards():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4000, 29))
    small, large = frechet_distance(x[:17], y[:17]), frechet_distance(x, y)
    assert 0 < large < 0.2 < small
    with pytest.raises(VidcmError, match="2 clips or more"):
        frechet_distance(x[:1], y)


# --- the network ----------------------------------------------------------------------------------


def test_network_shapes_for_any_length_and_size():
    net = AttributeNet({"a": 3, "b": 7}).eval()
    video = torch.randn(2, 3, 5, 48, 80)
    logits = net(video)
    assert {k: tuple(v.shape) for k, v in logits.items()} == {
        "a": (2, 3),
        "b": (2, 7),
        "playback": (2, 4),
    }
    assert net.features(video).shape == (2, 64)
    assert torch.allclose(net.features(video)[1:], net.features(video[1:]), atol=1e-5)
    assert 2e5 < sum(p.numel() for p in net.parameters()) < 4e5


def test_frame_orders():
    u = torch.rand(4, 7)
    forward, backward, frozen, shuffled = frame_order(torch.arange(len(PLAYBACK)), u).tolist()
    assert forward == list(range(7)) and backward == forward[::-1]
    assert len(set(frozen)) == 1 and sorted(shuffled) == forward != shuffled


def test_the_objective_does_not_depend_on_how_a_batch_is_split(puppets):
    torch.manual_seed(0)
    counts = {name: len(puppets.words[name]) for name in puppets.attributes}
    net = AttributeNet(counts).eval()  # batch norm aside
    objective = AttributeNaming(altered=0.5)

    def loss(places: range) -> float:
        return objective(net, puppets.batch(3, places), 0.0, SampleRng(3, places)).total.item()

    whole = loss(range(6))
    assert whole == pytest.approx((loss(range(2)) * 2 + loss(range(2, 6)) * 4) / 6, rel=1e-5)


def test_the_objective_learns_and_refuses_other_data(puppets):
    counts = {name: len(puppets.words[name]) for name in puppets.attributes}
    net, objective = AttributeNet(counts), AttributeNaming()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for step in range(10):
        places = range(8 * (step % 2), 8 * (step % 2 + 1))
        loss = objective(net, puppets.batch(0, places), 0.0, SampleRng(step, places)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-2:]) < 0.85 * losses[0]
    with pytest.raises(UsageError, match="the same order"):
        objective(AttributeNet({"sex": 2}), puppets.batch(0, range(2)), 0.0, SampleRng(0, range(2)))
    with pytest.raises(UsageError, match="it must be in"):
        AttributeNaming(altered=1.5)


def test_averaged_weights_get_batch_statistics_of_their_own(puppets):
    net = AttributeNet({name: len(puppets.words[name]) for name in puppets.attributes})
    frames = puppets.batch(HELDOUT_SEED, range(96)).frames
    video = to_video(frames)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)  # as averaging does, behind the back of the running statistics
        wanted = net(video)["skin"]
        stale = (net.eval()(video)["skin"] - wanted).abs().mean()
        renew_statistics(net, puppets)
        assert (net(video)["skin"] - wanted).abs().mean() < 0.2 * stale and not net.training


# --- the bundled one ------------------------------------------------------------------------------


def test_bundled_network_is_small_and_says_how_good_it_is():
    assert sum(p.stat().st_size for p in BUNDLED.iterdir()) < 2e6
    made = read_card(BUNDLED)["metadata"]
    accuracy = made["heldout_accuracy"]
    assert np.mean(list(accuracy.values())) > 0.6 and made["heldout_count"] >= 512


def test_export_makes_the_folder_to_bundle(puppets, tmp_path, monkeypatch, capsys):
    counts = {name: len(puppets.words[name]) for name in puppets.attributes}
    spec, run, output = (
        {"name": "attribute_net", "classes": counts},
        tmp_path / "run",
        tmp_path / "x",
    )
    save_model(run, spec, AttributeNet(counts).state_dict(), metadata={"step": 3})
    monkeypatch.setattr("vidcm.lpc.features.LPC", lambda art, attributes: puppets)
    monkeypatch.setattr(release_features, "__defaults__", (5,))
    argv = ["--features", str(run), "--output", str(output), "--art", "theatre"]
    assert export.main(argv) == 0
    assert f"{output}: names sex " in capsys.readouterr().out
    made = read_card(output)["metadata"]
    assert made["step"] == 3 and made["heldout_count"] == 5
    assert list(made["heldout_accuracy"]) == puppets.attributes
    assert (output / "model.safetensors").stat().st_size < 0.6 * (
        (run / "model.safetensors").stat().st_size
    )
    for words, message in (
        (argv, "x exists; give another --output, or --overwrite"),
        ([*argv, "--codec", "c"], "leave out codec, teacher and student"),
        (["--codec", "c", "--output", "y"], "--teacher, --student missing"),
    ):
        assert export.main(words) == 2
        assert message in capsys.readouterr().err
    tiny.save(run, tiny.CODEC)
    assert export.main([*argv, "--overwrite"]) == 2  # before anything is written
    assert "holds a CausalVAE; expected a AttributeNet" in capsys.readouterr().err
    assert read_card(output)["metadata"] == made


def test_bundled_features_see_noise_freezing_and_wrong_order(small_art):
    features = LpcFeatures()
    combinations = [small_art.sample(np.random.default_rng([0, i]), "heldout") for i in range(72)]
    frames = small_art.render(combinations)
    true = features(frames)

    def far(other: torch.Tensor) -> float:
        return frechet_distance(features(other), true)

    assert far(frames) < 1e-6
    noise = torch.randn(frames.shape)
    noisy = [far((frames + s * noise).clamp(0, 255).to(torch.uint8)) for s in (4, 16, 64)]
    assert noisy[0] < noisy[1] < noisy[2]
    repeated = [frames[:, torch.arange(9) // n * n] for n in (1, 2, 4, 9)]  # every n-th frame
    still = [far(r) for r in repeated]
    assert still[0] < still[1] < still[2] < still[3]
    assert still[3] > 3 * far(frames.roll(1, 2))  # freezing weighs more than a shift by one pixel
    assert far(frames[:, torch.randperm(9)]) > far(frames.roll(1, 2))


def test_bundled_network_names_true_clips(small_art):
    net = LpcFeatures().net
    combinations = [small_art.sample(np.random.default_rng([1, i]), "heldout") for i in range(32)]
    logits = net(to_video(small_art.render(combinations)))
    full = small_art.__class__(small_art.sheets.art)  # its own, whole vocabulary gives the labels
    labels = full.labels(combinations)
    right = [
        (logits[a].argmax(1) == labels[:, i]).float().mean() for i, a in enumerate(full.attributes)
    ]
    assert float(torch.stack(right).mean()) > 0.6
