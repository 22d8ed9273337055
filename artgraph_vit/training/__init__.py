"""Training in two phases: arguments -> options -> setup -> trainer -> outcome."""
