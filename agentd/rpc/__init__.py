"""The server side of the wire: servicers that decode, call and encode; errors; health; reflection."""
