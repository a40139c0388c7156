package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// AddEngine records which server is measured, for engines.json; one that is known already is not added again. It must be
// called before Begin. A collector that has a server's sampler calls it.
func (w *Writer) AddEngine(e metrics.EngineRecord) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase != created {
		return errors.New("results: AddEngine after Begin: say what is measured before the run starts")
	}
	if !slices.ContainsFunc(w.engines, func(known metrics.EngineRecord) bool { return reflect.DeepEqual(known, e) }) {
		w.engines = append(w.engines, e)
	}
	return nil
}

// writeEngines writes engines.json, if an engine was declared. It is called with mu held.
func (w *Writer) writeEngines() error {
	if len(w.engines) == 0 {
		return nil
	}
	data, err := json.MarshalIndent(w.engines, "", "  ")
	if err != nil {
		return fmt.Errorf("results: the engines cannot be stored: %w", err)
	}
	return writeFile(w.dir, enginesFile, append(data, '\n'))
}
