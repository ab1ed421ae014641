"""The HDF5 patch cache: its format, writer and reader."""
