"""A fuzzer for the file readers: seeds, mutations by format, a watched reader, and a second opinion."""
