"""Wrong arguments of every public function and command: none may end in a traceback."""
