"""AlexNet (Krizhevsky, Sutskever, Hinton 2012) as it ran: two towers on two devices that meet at four layers."""
from .network import MergedAlexNet, TwoTowerAlexNet
from .recipe import Recipe, mini, paper, source2012

__all__ = ["MergedAlexNet", "Recipe", "TwoTowerAlexNet", "mini", "paper", "source2012"]
