"""The presets say what their sources say, and wrong values are refused with the field's name."""

import dataclasses
import json
import math
import pickle

import pytest
from inner_cases import every

from alexnet_mp.recipes.architectures import mini, paper, source2012
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import Date, change_layers, describe, every_field, from_dict, override, to_dict, upgraded
from alexnet_mp.recipes.shapes import sizes
from alexnet_mp.runs.directory import read_run
from alexnet_mp.system.errors import UserError


def fields(recipe):
    """{"conv1.maps": 48, ..., "batch_size": 128, ...}"""
    values = {name: value for name, value in to_dict(recipe).items() if name != "layers"}
    return values | {
        f"{layer['name']}.{name}": value for layer in to_dict(recipe)["layers"] for name, value in layer.items()
    }


def test_paper_is_the_text():
    recipe = paper()
    assert [layer.init_std for layer in recipe.layers] == [0.01] * 8  # section 5
    # conv2, 4, 5 and the hidden fc layers
    assert [layer.init_bias for layer in recipe.layers] == [0, 1, 0, 1, 1, 1, 1, 0]
    # figure 2
    assert [layer.name for layer in recipe.layers if layer.reads == "both"] == ["conv3", "fc6", "fc7", "fc8"]
    assert (recipe.lrn_k, recipe.lrn_size, recipe.lrn_alpha, recipe.lrn_beta) == (2, 5, 1e-4, 0.75)  # 3.3
    assert (recipe.pool_size, recipe.pool_stride) == (3, 2)  # 3.4
    assert recipe.crop_positions**2 * 2 == 2048  # 4.1
    assert (recipe.colour_noise, recipe.colour_scale, recipe.colour_shrink) == (0.1, "eigenvalue", False)
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay, recipe.bias_weight_decay) == (128, 0.9, 5e-4, 5e-4)
    assert (recipe.learning_rate, recipe.bias_learning_rate, recipe.schedule) == (0.01, 0.01, "plateau")
    assert (recipe.plateau_drops, recipe.epochs, recipe.dropout) == (3, 90, 0.5)


def test_source2012_differs_from_the_paper_in_exactly_these_fields():
    a, b = fields(paper()), fields(source2012())
    assert {name: (a[name], b[name]) for name in a if a[name] != b[name]} == {
        "name": ("paper", "source2012"),
        "conv1.then": (["relu", "lrn", "max_pool"], ["lrn", "max_pool", "relu"]),
        "conv2.then": (["relu", "lrn", "max_pool"], ["relu", "lrn", "spatial_norm", "max_pool"]),
        "conv5.then": (["relu", "max_pool"], ["max_pool", "relu"]),
        "conv3.init_std": (0.01, 0.03),
        "conv4.init_std": (0.01, 0.03),
        "conv5.init_std": (0.01, 0.03),
        "lrn_alpha": (1e-4, 2e-5),
        "pool_ties": ("first", "all"),
        "crop_positions": (32, 33),
        "crop_share": (1, 32),
        "mean_follows_crop": (True, False),
        "colour_scale": ("eigenvalue", "root"),
        "colour_shrink": (False, True),
        "reshuffle": (True, False),
        "bias_learning_rate": (0.01, 0.02),
        "bias_weight_decay": (5e-4, 0.0),
        "schedule": ("plateau", "dated"),
        "epochs": (90, 93),
        "dates": ([], b["dates"]),
    }


def test_mini_is_the_papers_graph():
    for layer, paper_layer in zip(mini().layers, paper().layers, strict=True):
        copy = dataclasses.replace(layer, maps=paper_layer.maps, init_std=paper_layer.init_std)
        assert copy == paper_layer


def test_desk_is_the_papers_graph_for_small_pictures():
    for layer, paper_layer in zip(PRESETS["desk"]().layers, paper().layers, strict=True):
        stride = 2 if layer.name == "conv1" else paper_layer.stride
        assert (
            dataclasses.replace(layer, maps=paper_layer.maps, init_std=paper_layer.init_std, stride=paper_layer.stride)
            == paper_layer
            and layer.stride == stride
        )
    assert PRESETS["desk"]().layers[0].maps == 48 and PRESETS["desk"]().layers[0].init_std == 0.01
    outputs = {size.layer.name: size.output for size in sizes(PRESETS["desk"](), 100)}
    assert list(outputs.values()) == [
        (48, 10, 10),
        (48, 5, 5),
        (64, 5, 5),
        (64, 5, 5),
        (48, 2, 2),
        (512, 1, 1),
        (512, 1, 1),
        (100, 1, 1),
    ]
    names = {
        "batch_size",
        "learning_rate",
        "momentum",
        "weight_decay",
        "dropout",
        "lrn_alpha",
        "pool_size",
        "colour_noise",
        "test_views",
    }
    assert all(getattr(PRESETS["desk"](), field) == getattr(paper(), field) for field in names)


@every("preset", PRESETS.values(), ids=PRESETS)
def test_a_stored_recipe_is_the_recipe(preset):
    assert from_dict(to_dict(preset())) == preset()
    assert preset().name in describe(preset())


@every("names", [("source2012", "paper"), ("cifar13_local", "cifar11_local")])
def test_every_field_can_be_set_from_text(names):
    """Each field is written as text and read back: none is out of the reach of --set. Set together, those of one recipe
    make it of another with the same layers."""
    recipe, other = (PRESETS[name]() for name in names)
    texts = []
    for name, value in fields(recipe).items():  # `layers` has a test of its own
        words = isinstance(value, list) and value and isinstance(value[0], str)
        texts.append(f"{name}={','.join(value) if words else json.dumps(value)}")
        assert override(recipe, texts[-1:]) == recipe, name
    assert other != recipe and override(other, texts) == recipe


def test_override_changes_one_field_and_keeps_the_rest():
    before, after = (
        fields(paper()),
        fields(override(paper(), ["conv3.init_std=0.03", "conv1.then=lrn,max_pool,relu", "flip=false"])),
    )
    assert {name for name in before if before[name] != after[name]} == {"conv3.init_std", "conv1.then", "flip"}
    assert after["conv1.then"] == ["lrn", "max_pool", "relu"] and after["flip"] is False


@every(
    "setting, named",
    [
        ("batchsize=3", "did you mean batch_size"),
        ("nonsense=3", "nonsense"),
        ("conv9.maps=3", "conv9"),
        ("conv1.colour=3", "conv1.colour"),
        ("batch_size", "field=value"),
        ("batch_size=0", "batch_size"),
        ("batch_size=1.5", "batch_size"),
        ("batch_size=many", "batch_size"),
        ("learning_rate=nan", "learning_rate"),
        ("learning_rate=-1", "learning_rate"),
        ("momentum=1", "momentum"),
        ("dropout=1.5", "dropout"),
        ("flip=perhaps", "flip"),
        ("schedule=cosine", "schedule"),
        ("seed=-1", "seed"),
        ("seed=4294967296", "seed"),
        ("towers=3", "towers"),
        ("crop_size=300", "crop_size"),
        ("crop_positions=34", "crop_positions"),
        ("pool_size=60", "pool_size"),
        ("lrn_k=0", "lrn_k"),
        ("conv1.maps=0", "conv1.maps"),
        ("conv1.kernel=500", "conv1.kernel"),
        ("conv1.then=relu,swish", "conv1.then"),
        ("conv2.reads=image", "conv2.reads"),
        ("fc6.then=lrn", "fc6.then"),
        ("fc8.towers=each", "fc8.towers"),
        ("fc8.maps=10", "fc8.maps"),
        ("fc8.reads=own", "fc8.reads is 'own': the last layer of two towers reads both"),
        ("fc7.kind=conv", "fc7.kind"),
        ("fc7.kernel=3", "fc7.kernel"),
        ("lrn_beta=NaN", "lrn_beta"),
        ("lrn_k=Infinity", "lrn_k"),
        ("conv1.init_bias=NaN", "conv1.init_bias"),
        ("batch_size=true", "batch_size"),
        ("name=a/b", "name"),
        ("layers=[1]", "layers"),
        ("layers=[{}]", "layers"),
        ("conv1.maps=99999999999999999999", "conv1.maps"),
        ("conv1.name=forward", "like conv1"),
        ("dates.0.epoch=3", "set whole, as JSON"),
        ('dates=[{"epoch": 3, "wieghts": 0.1}]', "wieghts"),
        ('dates=[{"epoch": 3, "weights": -1}]', "dates.0.weights is -1"),
        ("conv1.weight_decay=-1", "conv1.weight_decay"),
        ("fc6.weight_decay=Infinity", "fc6.weight_decay"),
        ("conv1.rate=-1", "conv1.rate"),
        ("conv1.rate=NaN", "conv1.rate"),
        ("conv1.rate=null", "conv1.rate"),
        ("conv1.kind=local", "conv1.kind"),
        ("test_views=five", "test_views"),
        ("batch_file_size=0", "batch_file_size"),
        ("batch_file_size=true", "batch_file_size"),
        ("fc_batch_size=0", "fc_batch_size"),
        ("fc_batch_size=32", "fc_batch_size is 32: the layers of two towers"),
        ("fc7.kind=local", "fc7.kind"),
        ("conv1.pad=-1", "conv1.pad"),
        ("conv2.name=conv1", "names"),
        ("pool_stride=4", "pool_stride"),
        ("epochs=0", "epochs"),
        ("epochs=1000000000000000000000000", "epochs is 10{24}: it must be less than 9007199254740992"),
        ("conv1.pad=9007199254740992", "conv1.pad"),
        ("lrn_size=1024", "lrn_size is 1024: it must be less than 1024"),
        ("spatial_size=100000000000000000000", "spatial_size"),
        ("stored_size=65536", "stored_size is 65536: it must be less than 65536"),
        ("lrn_k=1e-45", "lrn_k is 1e-45: it must be greater than or equal to 1.2e-38$"),
        ("spatial_k=1e-45", "spatial_k"),
        ("lrn_alpha=1e300", r"lrn_alpha is 1e\+300: it must be less than or equal to 3e\+38$"),
        ("conv1.init_bias=1e300", "conv1.init_bias"),
        ("conv1.init_bias=-1e300", "conv1.init_bias"),
        ('dates=[{"epoch": 0}]', "dates"),
        ('dates=[{"epoch": 3, "layers": ["conv9"]}]', "dates"),
    ],
)
def test_a_wrong_value_is_refused_by_name(setting, named):
    with pytest.raises(UserError, match=named) as error:
        override(paper(), [setting])
    assert "\n" not in str(error.value)


@every(
    "changes, words",
    [
        ({"dropout": math.nan}, "dropout is nan: it must be a finite number"),
        ({"momentum": 1.0}, "momentum is 1.0: it must be less than 1"),
        ({"batch_size": 0}, "batch_size is 0: it must be greater than or equal to 1"),
        ({"lrn_k": math.inf}, "lrn_k is inf: it must be a finite number"),
        ({"seed": 2**32}, "seed is 4294967296: it must be less than 4294967296"),
        ({"jpeg_quality": 101}, "jpeg_quality is 101: it must be"),
        ({"schedule": "cosine"}, "schedule is 'cosine': it must be 'plateau' or 'dated'"),
        ({"crop_size": 300}, "crop_size is 300: the crop"),
        (
            {"dates": (Date(1, colour_noise=-1.0),)},
            "dates.0.colour_noise is -1.0: it must be greater than or equal to 0",
        ),
        ({"layers": (1,)}, "layers.0 is 1: it must be an instance of Layer"),
        ({"flip": 1}, "flip is 1: it must be a valid boolean"),
        ({"kernel": 0}, "conv1.kernel is 0: it must be greater than or equal to 1"),
        ({"maps": 2**31}, "conv1.maps is 2147483648: it must be"),
        ({"rate": math.inf}, "conv1.rate is inf: it must be a finite number"),
        ({"then": ("swish",)}, "conv1.then.0 is 'swish': it must be 'relu'"),
        (
            {"towers": 1, "fc_batch_size": 4, "layers": (dataclasses.replace(paper().layers[-1], reads="image"),)},
            "fc_batch_size is 4: it is for fully connected layers behind convolutions",
        ),
    ],
)
def test_a_recipe_that_code_makes_is_checked_as_one_that_is_read(changes, words):
    """One sentence, wherever it comes from."""
    recipe, (first, *others) = paper(), paper().layers
    with pytest.raises(UserError) as error:
        if changes.keys() <= vars(first).keys():
            dataclasses.replace(recipe, layers=(dataclasses.replace(first, **changes), *others))
        else:
            dataclasses.replace(recipe, **changes)
    assert str(error.value).startswith(f"recipe field {words}") and "\n" not in str(error.value)


def test_a_recipe_is_a_value():
    recipe = source2012()
    copy = pickle.loads(pickle.dumps(recipe))
    assert copy == recipe == dataclasses.replace(recipe) and hash(copy) == hash(recipe) and type(copy) is type(recipe)
    names = [field.name for field in dataclasses.fields(recipe)]
    common_names = [name for name in names if name not in ("lrn_crosses", "fc_batch_size")]
    assert list(to_dict(recipe)) == common_names and sorted(every_field(recipe)) == sorted(names)
    for preset, field in (("caffenet", "lrn_crosses"), ("owt2014", "fc_batch_size")):
        assert list(to_dict(PRESETS[preset]())) == [name for name in names if name in (*common_names, field)]


@every("layers", [[1], [{}], "conv1", None])
def test_a_stored_recipe_with_damaged_layers_is_refused(layers):
    with pytest.raises(UserError, match="layers"):
        from_dict(to_dict(paper()) | {"layers": layers})


def test_a_stored_recipe_with_a_foreign_field_is_refused():
    with pytest.raises(UserError, match="colour_nosie"):
        from_dict(to_dict(paper()) | {"colour_nosie": 0.1})


def test_layers_can_be_replaced_and_then_changed():
    """The whole list is a field like any other: here net without conv4, with conv5 narrowed after that."""
    layers = [layer for layer in to_dict(paper())["layers"] if layer["name"] != "conv4"]
    recipe = override(paper(), ["layers=" + json.dumps(layers), "conv5.maps=64"])
    assert [layer.name for layer in recipe.layers] == ["conv1", "conv2", "conv3", "conv5", "fc6", "fc7", "fc8"]
    assert recipe.layers[3].maps == 64
    for layers in ("5", '["x"]', '[{"kind": "conv"}]'):
        with pytest.raises(UserError, match="layers"):
            override(paper(), ["layers=" + layers, "conv1.maps=3"])


def test_change_layers_refuses_a_layer_that_is_not_there():
    with pytest.raises(UserError, match="conv9"):
        change_layers(paper(), "conv9", maps=3)


@every("preset", [paper, source2012, mini])
def test_a_recipe_stored_before_is_the_same_today(preset):
    record = without_file_size(preset())
    assert upgraded(record) == to_dict(preset()) and record == without_file_size(preset())


def without_file_size(recipe):
    return {name: value for name, value in to_dict(recipe).items() if name != "batch_file_size"}


@every("fields", [None, [], "recipe", to_dict(paper()), {"batch_file_size": 3}])
def test_anything_else_is_left_as_it_is(fields):
    assert upgraded(fields) is fields


def test_a_run_of_before_can_be_read(tmp_path):
    run = {"recipe": without_file_size(PRESETS["cifar18"]()), "data": {"source": "builtin", "classes": ["ant", "bee"]}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert read_run(tmp_path)["recipe"] == dataclasses.replace(PRESETS["cifar18"](), batch_file_size=None)
    del run["recipe"]["layers"][0]["rate"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match="not complete"):
        read_run(tmp_path)
