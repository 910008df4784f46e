"""What can be found wrong with a sweep before its first job: a module a kind of check, ``examine`` for all of them."""
