"""How the loss, its gradient and its second derivatives are computed, chunk by chunk."""
