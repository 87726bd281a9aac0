"""How much work it is to measure what each tower is for and sees, which is most of a report's."""

from ..analysis import lesions, sight
from ..analysis.altered_pictures import ALTERATIONS
from ..analysis.silencing import maps_read, meeting_layers
from ..recipes import shapes
from ..recipes.recipe import Recipe


def forward_passes(recipe: Recipe, classes: int, labelled: bool = True) -> dict[str, float]:
    """{what is measured: forward passes of the network for each of its pictures}; labelled: whether their classes are
    known, else there is less to measure.

    A lesion begins with what is before the first layer that it touches (`silencing.judge`), and counts as the share of
    a pass's products of weights and inputs that come from there on."""
    places, second = meeting_layers(recipe), recipe.layers[1].name
    from_layer = _shares(recipe, classes)
    first_meeting = from_layer[places[0]] if places else 0
    everywhere = len(places) > 1  # lesions at all places at once, towers alone
    division = 1 + 3 * (1 + 2 * (1 + sight.DRAWS) * from_layer[second]) if recipe.towers == 2 else 0
    if not labelled:
        return {"brightness and colour": division}
    towers = places[:everywhere] + places
    links = [layer.name for layer in recipe.layers if layer.name in places and layer.towers == "each"]
    return {
        "lesions": 2
        + (2 + lesions.DRAWS) * sum(from_layer[name] for name in towers)
        + (2 + 2 * lesions.DRAWS) * sum(from_layer[name] for name in links),
        "single kernels": 2 + recipe.towers * maps_read(recipe, second) * from_layer[second],
        "altered pictures": 1 + len(ALTERATIONS) * (1 + 2 * (1 + everywhere) * first_meeting),
        "brightness and colour": division,
        "classes": 2 + 2 * first_meeting if places else 0,
    }


def _shares(recipe, classes):
    """{layer: the share of a forward pass's products from this layer on}"""
    products = {
        size.layer.name: size.products * (recipe.towers if size.layer.towers == "each" else 1)
        for size in shapes.sizes(recipe, classes)
    }
    names = list(products)
    whole = sum(products.values())
    return {name: sum(products[later] for later in names[place:]) / whole for place, name in enumerate(names)}
