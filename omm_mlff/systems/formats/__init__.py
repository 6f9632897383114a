"""Structure files: one module a format, each with

    SUFFIXES           of its files, lower case
    read(path, frame)  what the file says; `frame` counts from 0, None where none was named

Where it wants a second file beside the first (coordinates for a topology), it has as well

    PARTNERS           suffixes of the second file
    read(path, frame, partner)
"""
