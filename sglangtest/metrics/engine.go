package metrics

import (
	"errors"
	"fmt"
	"slices"
)

// An Engine names a server that was measured. What the server does not tell is empty.
type Engine struct {
	Source  string `json:"source"`  // its name in samples and events, such as "server-0"
	Version string `json:"version"` // SGLang's
	Model   string `json:"model"`   // the model's path
	URL     string `json:"url"`     // without a password
}

// String says it in words, such as "SGLang 0.5.23, model llama, at http://127.0.0.1:30000".
func (e Engine) String() string {
	version := e.Version
	if version == "" {
		version = "of unknown version"
	}
	return fmt.Sprintf("SGLang %s, model %s, at %s", version, orUnknown(e.Model), e.URL)
}

// An EngineRecord says what an engine was measured with: all that its server told when it had become ready. It holds no
// API keys and passwords: "(not stored)" stands in their place.
type EngineRecord struct {
	Engine
	ContextLength      int       `json:"context_length"`       // tokens of prompt and output together; 0, here and below: not told
	MaxInputLen        int       `json:"max_input_len"`        // longest prompt in tokens
	MaxTotalTokens     int       `json:"max_total_tokens"`     // KV pool in tokens, of each data-parallel rank
	MaxRunningRequests int       `json:"max_running_requests"` // limit at start-up, of each data-parallel rank
	DPSize             int       `json:"data_parallel_ranks"`  // data-parallel ranks
	GPUs               []GPUName `json:"gpus"`                 // those that the run gave it; null: the server was running, is simulated, or chose by itself
	// Command is the command line that started it; null if the run did not start it as a process.
	Command []string `json:"command"`
	// ServerInfo is the answer to GET /server_info: every setting as the server resolved it.
	ServerInfo map[string]any `json:"server_info"`
}

// A GPUName says which GPU an engine used. Name and UUID are empty where the run did not look at the GPUs.
type GPUName struct {
	Index int    `json:"index"` // the CUDA device id among all GPUs of the host, in PCI order
	Name  string `json:"name,omitempty"`
	UUID  string `json:"uuid,omitempty"`
}

// A recorded is a sampler that tells what its source is.
type recorded interface{ Engine() EngineRecord }

// AddEngine declares an engine that is measured, for the summary's first lines, and to the sink as well if it has a
// method of this name. It must come before Begin. A sampler that has the method Engine() EngineRecord declares its own.
func (c *Collector) AddEngine(e EngineRecord) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateNew {
		return errors.New("metrics: an engine must be declared before the run begins")
	}
	if !slices.Contains(c.engines, e.Engine) {
		c.engines = append(c.engines, e.Engine)
	}
	if sink, ok := c.sink.(interface{ AddEngine(EngineRecord) error }); ok {
		return sink.AddEngine(e)
	}
	return nil
}

// recordEngines declares the engines that the samplers tell of.
func (c *Collector) recordEngines() error {
	for _, l := range c.samplers {
		if s, ok := l.sampler.(recorded); ok {
			if err := c.AddEngine(s.Engine()); err != nil {
				return err
			}
		}
	}
	return nil
}
