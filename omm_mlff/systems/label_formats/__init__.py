"""Files of energies and forces: one module a format, each with

FORMAT               its name
UNITS                LabelUnits that the format has, or None where it leaves them open
matches(path)        whether a file is of it
read(path, keys)     its frames, as LabelledFrames in the file's units
"""
