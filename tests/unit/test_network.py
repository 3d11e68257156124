from urllib.error import URLError

import pytest
import torch
from coral_pytorch.losses import corn_loss
from safetensors.torch import save_file

import models.network
from infra.errors import UserError
from models.network import answer, backbone_names, build_network, check_backbone, empty_network
from models.tasks.base import MISSING, Head, get_task
from tests.unit.scorers import small_network

HEADS = (Head(name="smile", classes=(False, True)), Head(name="score", classes=tuple(range(60, 100))))
SMALL = "shufflenet_v2_x0_5"


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("vgg16", 32),
        ("resnet18", 32),
        ("resnet50", 32),
        ("densenet121", 32),
        ("convnext_tiny", 32),
        ("efficientnet_v2_s", 32),
        ("mobilenet_v3_small", 32),
        ("vit_b_16", 224),
    ],
)
def test_backbones_answer_every_head(backbone, size):
    network = build_network(backbone, HEADS, input_size=size).eval()
    with torch.inference_mode():
        logits = network(torch.rand(1, 3, size, size))
    assert {name: tuple(values.shape) for name, values in logits.items()} == {"smile": (1, 2), "score": (1, 40)}
    assert all(torch.isfinite(values).all() for values in logits.values())
    assert list(network.state_dict())[-2:] == ["classifier.weight", "classifier.bias"]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", backbone_names())
def test_every_backbone_answers_every_head(backbone):
    logits = empty_network(backbone, HEADS).eval()(torch.empty(2, 3, 224, 224, device="meta"))
    assert logits["score"].shape == (2, 40)


def test_empty_network_has_the_same_tensors_without_memory():
    for backbone in (SMALL, "regnet_y_400mf"):
        built, empty = (make(backbone, HEADS).state_dict() for make in (build_network, empty_network))
        assert [(k, v.shape, v.dtype) for k, v in built.items()] == [(k, v.shape, v.dtype) for k, v in empty.items()]
        assert all(tensor.is_meta for tensor in empty.values())


@pytest.mark.parametrize(
    ("name", "near"), [("resnet_18", "resnet18"), ("VGG16", "vgg16"), ("convnext", "convnext_tiny")]
)
def test_unknown_backbone_is_refused_with_near_matches(name, near):
    with pytest.raises(UserError, match=f"no backbone '{name}'.*{near}"):
        build_network(name, HEADS)


def test_a_name_like_no_other_gets_examples():
    with pytest.raises(UserError, match="for example alexnet"):
        check_backbone("???")


@pytest.mark.parametrize("name", ["squeezenet1_0", "googlenet", "inception_v3"])
def test_backbones_without_one_last_linear_layer_are_refused(name):
    with pytest.raises(UserError, match="not supported"):
        build_network(name, HEADS)


@pytest.mark.parametrize(("backbone", "size"), [("vit_b_16", 64), ("vgg16", 16), ("alexnet", 32)])
def test_input_sizes_that_a_backbone_does_not_take_are_refused_before_training(backbone, size):
    with pytest.raises(UserError, match=f"'{backbone}' does not take inputs of {size} × {size}"):
        build_network(backbone, HEADS, input_size=size)


def test_dropout_acts_in_training_only_and_leaves_the_tensor_names():
    plain, dropping = build_network(SMALL, HEADS), build_network(SMALL, HEADS, dropout=0.5)
    assert list(plain.state_dict()) == list(dropping.state_dict())
    dropping.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(plain.eval()(images), dropping.eval()(images))
        dropping.train()
        for module in dropping.modules():  # only the new dropout, not batch norm
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        assert not torch.equal(dropping(images)["score"], dropping(images)["score"])


def test_weights_come_from_a_torchvision_state_dict_and_from_another_scorer(tmp_path):
    from torchvision.models import get_model

    model = get_model(SMALL)
    save_file(model.state_dict(), tmp_path / "torchvision.safetensors")
    network = build_network(SMALL, HEADS, weights=str(tmp_path / "torchvision.safetensors"))
    torch.testing.assert_close(network.backbone.state_dict()["conv1.0.weight"], model.state_dict()["conv1.0.weight"])
    assert network.classifier.out_features == 42

    save_file(network.state_dict(), tmp_path / "scorer.safetensors")
    same = build_network(SMALL, HEADS, weights=str(tmp_path / "scorer.safetensors"))
    assert torch.equal(same.classifier.weight, network.classifier.weight)  # a scorer of the same answers goes on
    other = build_network(SMALL, HEADS[:1], weights=str(tmp_path / "scorer.safetensors"))
    assert all(torch.equal(other.backbone.state_dict()[k], v) for k, v in network.backbone.state_dict().items())
    assert other.classifier.out_features == 2


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(build_network(SMALL, HEADS).state_dict(), path)
    with pytest.raises(UserError, match=r"does not hold weights of backbone 'resnet18'.*tensors are absent"):
        build_network("resnet18", HEADS, weights=str(path))
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"not a readable \.safetensors"):
        build_network(SMALL, HEADS, weights=str(path))
    with pytest.raises(UserError, match="no weights file"):
        build_network(SMALL, HEADS, weights=str(tmp_path / "absent.safetensors"))
    with pytest.raises(UserError, match="neither 'none', 'imagenet' nor"):
        build_network(SMALL, HEADS, weights="weights.pth")


def test_imagenet_weights_without_a_network_are_a_clear_refusal(monkeypatch):
    def offline(name, **options):
        assert options["weights"] is not None
        raise URLError("no route to host")

    monkeypatch.setattr(models.network, "get_model", offline)
    with pytest.raises(UserError, match=r"cannot download the ImageNet weights of 'resnet18'.*no route to host.*path"):
        build_network("resnet18", HEADS, weights="imagenet")


def test_an_ordinal_network_answers_with_probabilities_of_its_conditional_questions():
    heads = (Head(name="score", classes=tuple(range(5))),)
    network = build_network(SMALL, heads, ordinal=True).eval()
    assert network.classifier.out_features == 4
    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        p = network(images)["score"].exp()
        above = network.classifier(network.backbone(images)).sigmoid()  # P(y > k | y >= k)
    expected = torch.stack([above[:, :k].prod(1) * (1 - above[:, k] if k < 4 else 1) for k in range(5)], 1)
    torch.testing.assert_close(p, expected)
    torch.testing.assert_close(p.sum(1), torch.ones(3))


def test_corn_is_the_loss_of_the_library_of_its_authors():
    task = get_task("attractiveness")
    network = build_network(SMALL, task.heads, ordinal=True).eval()
    torch.nn.init.normal_(network.classifier.weight, std=0.5)
    images = torch.rand(6, 3, 32, 32)
    targets = torch.tensor([[0], [5], [38], [39], [39], [17]])
    loss = task.loss(network(images), targets, kind="corn")
    expected = corn_loss(network.classifier(network.backbone(images)), targets[:, 0], 40)
    torch.testing.assert_close(loss, expected)
    with_unlabelled = task.loss(
        network(torch.cat([images, images[:1]])), torch.cat([targets, torch.tensor([[MISSING]])]), kind="corn"
    )
    torch.testing.assert_close(with_unlabelled, expected)


def test_a_mirrored_answer_is_the_same_for_a_picture_and_its_mirror_image():
    network = small_network("attractiveness")
    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        plain, turned = network(images), network(images.flip(3))
        both = answer(network, images, mirror=True)
        assert torch.equal(answer(network, images, mirror=False)["score"], plain["score"])
    assert not torch.allclose(plain["score"], turned["score"], atol=1e-4)
    torch.testing.assert_close(both["score"], (plain["score"] + turned["score"]) / 2)
