"""The paper's claims: what is trained, what is measured, what came out."""
