package sim

// H100Llama8B is Llama-3.1-8B in bf16 on one H100.
func H100Llama8B() Profile { return Profile{} }
