"""The paper's figures: their runs, collected and drawn, and the page of them all."""
