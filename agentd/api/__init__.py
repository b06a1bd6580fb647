"""What both sides of the wire share: types, errors, and their translation to messages.

Importing this package imports neither grpc nor protobuf; `convert`, `errwire` and `channel` do what
needs them.
"""
