"""The student in C++: built once a machine, for any shape."""
