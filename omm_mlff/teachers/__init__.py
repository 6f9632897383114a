"""Methods that students are measured against: the teacher, and quantum chemistry beside it."""
