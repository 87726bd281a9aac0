"""What two recipes differ in."""

from alexnet_mp.recipes.recipe import to_dict


def differing(before, after):
    """The fields that differ, those of a layer that only one of the recipes has left out: "layers" stands for them."""

    def flat(recipe):
        fields = to_dict(recipe)
        layers = {f"{layer['name']}.{field}": value for layer in fields["layers"] for field, value in layer.items()}
        return {**fields, "layers": [layer["name"] for layer in fields["layers"]], **layers}

    before, after = flat(before), flat(after)
    return {name for name in before.keys() & after.keys() if before[name] != after[name]}
