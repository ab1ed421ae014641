"""What each command does, as one typed function: a request in, a result out."""
