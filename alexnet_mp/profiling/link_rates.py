"""Nominal rates of links between devices and between machines, in bytes a second, one way: stated by their makers, not
measured here. For what is computed of links that are not there."""

PCIE_2_X16 = 8e9  # of 2012: 16 lanes of 5 GT/s, 8 of 10 bits are data
PCIE_5_X16 = 63e9  # 16 lanes of 32 GT/s, 128 of 130
NVLINK_4 = 450e9  # of an H100 or H200: half of the 900 GB/s that both ways have together
NVLINK_5 = 900e9  # of a B200: half of 1,800 GB/s
NETWORK_100 = 12.5e9  # 100 Gbit/s
NETWORK_400 = 50e9  # 400 Gbit/s
