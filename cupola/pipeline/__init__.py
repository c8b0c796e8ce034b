"""The whole way: corpora to stores, stages in order, what carries over, what is recorded."""
