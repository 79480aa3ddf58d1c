"""Masters & Luschi (2018), "Revisiting Small Batch Training for Deep Neural Networks", as a package."""
