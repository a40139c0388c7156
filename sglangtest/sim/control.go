package sim

import (
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// says is a handler that answers with a text.
func says(text string) func(*Server, http.ResponseWriter, *http.Request) {
	return func(_ *Server, w http.ResponseWriter, _ *http.Request) { writeBody(w, http.StatusOK, "", []byte(text)) }
}

// takes is a handler that reads an object, which changes nothing in a simulation, and answers with a text.
func takes(text string) func(*Server, http.ResponseWriter, *http.Request) {
	return func(s *Server, w http.ResponseWriter, r *http.Request) {
		if _, _, ok := s.readObject(w, r); ok {
			writeBody(w, http.StatusOK, "", []byte(text))
		}
	}
}

func (s *Server) root(w http.ResponseWriter, r *http.Request) {
	writeBody(w, http.StatusOK, "application/json", []byte(`"SGLang is running"`))
}

// readObject reads a body that must be a JSON object, or answers why it is not and reports false.
func (s *Server) readObject(w http.ResponseWriter, r *http.Request) (fields map[string]json.RawMessage, raw []byte, ok bool) {
	body, _, ok := s.readBody(w, r)
	if !ok {
		return nil, nil, false
	}
	if f := s.decodeBody(r, body, &fields); f != nil {
		s.refuse(w, r, f)
		return nil, nil, false
	}
	return fields, body, true
}

// decodeBody reads a JSON object, if the request says that it is JSON: no web page can say so to another server without
// asking it first. FastAPI takes a body of another type as bytes; one without a type was JSON to it before 0.132 (0.128
// came with 0.5.15).
func (s *Server) decodeBody(r *http.Request, body []byte, fields *map[string]json.RawMessage) faults {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	untyped := r.Header.Get("Content-Type") == "" && s.opts.release.patch < 18
	isJSON := err == nil && (kind == "application/json" || strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json"))
	if len(body) > 0 && !untyped && !isJSON {
		return faults{fault("{'type': 'model_attributes_type', 'loc': " + inBody() +
			", 'msg': 'Input should be a valid dictionary or object to extract fields from', 'input': b" + pyString(string(body)) + "}")}
	}
	return s.decode(body, fields)
}

// decode reads a JSON object.
func (s *Server) decode(body []byte, fields *map[string]json.RawMessage) faults {
	if err := json.Unmarshal(body, fields); err != nil {
		if !json.Valid(body) {
			return faults{s.jsonFault(body, err)}
		}
		return faults{notObject(body)}
	}
	if *fields == nil { // null
		return faults{missing(inBody(), "None")}
	}
	return nil
}

func (s *Server) ok() bool { return s.status.Load() == statusUp }

func status(ok bool) int {
	if ok {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// ping is an unconditional 200 before 0.5.23.
func (s *Server) ping(w http.ResponseWriter, _ *http.Request) {
	writeBody(w, status(s.opts.release.patch < 23 || s.ok()), "", nil)
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	writeBody(w, status(s.ok() && !s.host.isPaused()), "", nil)
}

// The times of a health check (http_server.py, health_generate; SGLANG_HEALTH_CHECK_TIMEOUT).
const (
	healthPoll    = time.Second
	healthTimeout = 20 * time.Second
)

// health makes a generation of one token, unless the scheduler has something to do, and looks once a second whether
// any result has come.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	if state := s.status.Load(); state != statusUp && state != statusUnhealthy {
		writeBody(w, http.StatusServiceUnavailable, "", nil)
		return
	}
	begin := time.Now()
	priority, _ := s.opts.priority(lax{})
	probe := s.host.probe(fmt.Sprintf("HEALTH_CHECK_%032x", s.nextID.Add(1)), priority, begin)
	defer s.host.leave(probe)
	tick := time.NewTicker(healthPoll)
	defer tick.Stop()
	for time.Since(begin) < healthTimeout {
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-s.base.Done():
			panic(http.ErrAbortHandler)
		}
		if s.host.lastResult().After(begin) {
			s.status.CompareAndSwap(statusUnhealthy, statusUp)
			writeBody(w, http.StatusOK, "", nil)
			return
		}
	}
	s.status.CompareAndSwap(statusUp, statusUnhealthy)
	writeBody(w, http.StatusServiceUnavailable, "", nil)
}

// flushPoll is how often a flush that waits looks whether the engine is idle.
const flushPoll = 10 * time.Millisecond

func (s *Server) flushCache(w http.ResponseWriter, r *http.Request) {
	wait := time.Duration(0)
	if q := r.URL.Query(); q.Has("timeout") {
		seconds, err := strconv.ParseFloat(q.Get("timeout"), 64)
		raw, _ := json.Marshal(q.Get("timeout"))
		switch {
		case err != nil:
			s.refuse(w, r, faults{wrong("float_parsing", "('query', 'timeout')", "Input should be a valid number, unable to parse string as a number", raw)})
			return
		case !(seconds >= 0):
			s.refuse(w, r, faults{fault("{'type': 'greater_than_equal', 'loc': ('query', 'timeout'), 'msg': 'Input should be greater than or equal to 0', 'input': " +
				pyRepr(raw) + ", 'ctx': {'ge': 0.0}}")})
			return
		}
		wait = time.Duration(min(seconds, 1e9) * float64(time.Second))
	}
	deadline := time.Now().Add(wait)
	flushed := s.host.flush(s.opts.release.patch >= 21)
	for !flushed && time.Now().Before(deadline) {
		select {
		case <-time.After(min(flushPoll, time.Until(deadline))):
		case <-r.Context().Done():
			return
		case <-s.base.Done():
			panic(http.ErrAbortHandler)
		}
		flushed = s.host.flush(s.opts.release.patch >= 21)
	}
	if !flushed {
		writeBody(w, http.StatusBadRequest, "", []byte("Flush cache failed.\n"))
		return
	}
	writeBody(w, http.StatusOK, "", []byte("Cache flushed.\nPlease check backend logs for more details. "+
		"(When there are running or waiting requests, the operation will not be performed.)\n"))
}

func (s *Server) abortRequest(w http.ResponseWriter, r *http.Request) {
	fields, _, ok := s.readObject(w, r)
	if !ok {
		return
	}
	var rid string
	var all bool
	var f faults
	f.boolean("abort_all", fields["abort_all"], &all)
	if raw := fields["rid"]; !isNull(raw) && json.Unmarshal(raw, &rid) != nil {
		f = append(f, wrong("string_type", inBody("rid"), "Input should be a valid string", raw))
	}
	if f != nil {
		s.refuse(w, r, f)
		return
	}
	s.host.abortPrefix(rid, all)
	writeBody(w, http.StatusOK, "", nil)
}

// abortPoll is how often a pause that aborts does so again until nothing is left (tokenizer_manager.py, pause_generation).
const abortPoll = time.Second

func (s *Server) pauseGeneration(w http.ResponseWriter, r *http.Request) {
	fields, _, ok := s.readObject(w, r)
	if !ok {
		return
	}
	mode := "abort"
	if raw := fields["mode"]; len(raw) > 0 {
		if json.Unmarshal(raw, &mode) != nil || mode != "abort" && mode != "retract" && mode != "in_place" {
			s.refuse(w, r, faults{fault("{'type': 'literal_error', 'loc': " + inBody("mode") + ", 'msg': \"Input should be 'abort', 'retract' or 'in_place'\", 'input': " +
				pyRepr(raw) + ", 'ctx': {'expected': \"'abort', 'retract' or 'in_place'\"}}")})
			return
		}
	}
	switch mode {
	case "retract":
		s.host.pause(PauseRetract)
	case "in_place":
		s.host.pause(PauseInPlace)
	default:
		s.host.pause(0)
		s.host.meter.aborted()
		for {
			change := s.host.nextChange() // before they are counted
			if s.host.abortSubmitted() == 0 {
				break
			}
			select {
			case <-change:
			case <-time.After(abortPoll):
			case <-r.Context().Done():
				return
			case <-s.base.Done():
				panic(http.ErrAbortHandler)
			}
		}
	}
	writeBody(w, http.StatusOK, "application/json", []byte(`{"message":"Generation paused successfully.","status":"ok"}`))
}

func (s *Server) continueGeneration(w http.ResponseWriter, r *http.Request) {
	if _, _, ok := s.readObject(w, r); !ok {
		return
	}
	s.host.resume()
	writeBody(w, http.StatusOK, "application/json", []byte(`{"message":"Generation continued successfully.","status":"ok"}`))
}

func (s *Server) slowDown(w http.ResponseWriter, r *http.Request) {
	fields, raw, ok := s.readObject(w, r)
	if !ok {
		return
	}
	var sleep lax
	var f faults
	if _, has := fields["forward_sleep_time"]; !has {
		f = faults{missing(inBody("forward_sleep_time"), pyRepr(raw))}
	}
	f.number("forward_sleep_time", fields["forward_sleep_time"], &sleep, false)
	if f != nil {
		s.refuse(w, r, f)
		return
	}
	// What is not above 0 ends it (scheduler.py, slow_down).
	s.host.slowDown(time.Duration(max(0, min(sleep.v, 1e9)) * float64(time.Second)))
	writeBody(w, http.StatusOK, "application/json", []byte("null"))
}

func (s *Server) startProfile(w http.ResponseWriter, r *http.Request) {
	body, _, ok := s.readBody(w, r)
	if !ok {
		return
	}
	var fields map[string]json.RawMessage
	if len(body) > 0 && !isNull(body) {
		if f := s.decodeBody(r, body, &fields); f != nil {
			s.refuse(w, r, f)
			return
		}
	}
	writeBody(w, http.StatusOK, "", []byte("Start profiling.\n"))
}

func (s *Server) updateWeightVersion(w http.ResponseWriter, r *http.Request) {
	fields, raw, ok := s.readObject(w, r)
	if !ok {
		return
	}
	var version string
	var f faults
	abortAll := true
	if v, has := fields["abort_all_requests"]; has {
		abortAll = false
		f.boolean("abort_all_requests", v, &abortAll)
	}
	if v, has := fields["new_version"]; !has {
		f = append(f, missing(inBody("new_version"), pyRepr(raw)))
	} else if json.Unmarshal(v, &version) != nil {
		f = append(f, wrong("string_type", inBody("new_version"), "Input should be a valid string", v))
	}
	if f != nil {
		s.refuse(w, r, f)
		return
	}
	if abortAll {
		s.host.abortPrefix("", true)
	}
	s.weights.Store(&version)
	b := appendString([]byte(`{"success":true,"message":`), "Weight version updated to "+version)
	b = appendString(append(b, `,"new_version":`...), version)
	writeBody(w, http.StatusOK, "application/json", append(b, '}'))
}

// updateWeights takes the weights that the server has; there are no others in a simulation.
func (s *Server) updateWeights(w http.ResponseWriter, r *http.Request) {
	fields, raw, ok := s.readObject(w, r)
	if !ok {
		return
	}
	var path string
	v, has := fields["model_path"]
	switch {
	case !has:
		s.refuse(w, r, faults{missing(inBody("model_path"), pyRepr(raw))})
	case json.Unmarshal(v, &path) != nil:
		s.refuse(w, r, faults{wrong("string_type", inBody("model_path"), "Input should be a valid string", v)})
	case path != s.cfg.ModelPath:
		s.writeUpdated(w, http.StatusBadRequest, "Failed to get model loader: the simulated server has no weights of "+path+".")
	default:
		s.writeUpdated(w, http.StatusOK, "Succeeded to update model weights.")
	}
}

// writeUpdated answers an update of the weights, which ends with the same message on each data-parallel rank
// (tokenizer_manager.py, _wait_for_model_update_from_disk).
func (s *Server) writeUpdated(w http.ResponseWriter, status int, message string) {
	b := strconv.AppendBool([]byte(`{"success":`), status == http.StatusOK)
	n, paused := len(s.host.ranks), "0"
	if n > 1 {
		paused = "[" + strings.Repeat("0,", n-1) + "0]"
	}
	b = appendString(append(b, `,"message":`...), strings.Join(slices.Repeat([]string{message}, n), " | "))
	writeBody(w, status, "application/json", append(b, `,"num_paused_requests":`+paused+`}`...))
}

func (s *Server) weightVersion(w http.ResponseWriter, _ *http.Request) {
	const message = "Endpoint '/get_weight_version' or '/weight_version' is deprecated. Please use '/model_info' instead."
	writeBody(w, http.StatusNotFound, "application/json", appendOpenAIError(nil, message, "404", http.StatusNotFound))
}

// stateKeys are what /set_internal_state can set.
var stateKeys = []string{"pp_max_micro_batch_size", "speculative_accept_threshold_single", "speculative_accept_threshold_acc"}

// setInternalState follows Scheduler.set_internal_state, from 0.5.23 on internal_state.py. Numbers, and from 0.5.18 on
// strings that are numbers, pass the schema; a key or value that the scheduler refuses makes the reply [false] and
// changes nothing. The reply has an element for each data-parallel rank, which all take the value. 0.5.15 has no schema: what
// cannot be compared with a number kills its scheduler, and the server with it.
func (s *Server) setInternalState(w http.ResponseWriter, r *http.Request) {
	fields, raw, ok := s.readObject(w, r)
	if !ok {
		return
	}
	var args map[string]json.RawMessage
	if v, has := fields["server_args"]; !has {
		s.refuse(w, r, stateFaults(raw, missing(stateLoc("server_args"), pyRepr(raw))))
		return
	} else if json.Unmarshal(v, &args) != nil || args == nil {
		s.refuse(w, r, stateFaults(raw, wrong("dict_type", stateLoc("server_args"), "Input should be a valid dictionary", v)))
		return
	}
	var f faults
	known, deadly := true, false
	limit, set := 0.0, false
	for _, k := range slices.Sorted(maps.Keys(args)) {
		v, number := s.stateValue(k, args[k], &f)
		known = known && slices.Contains(stateKeys, k)
		if k == "pp_max_micro_batch_size" {
			limit, set, deadly = v, true, !number
		}
	}
	if f != nil {
		s.refuse(w, r, stateFaults(raw, f...))
		return
	}
	if known && deadly {
		s.crash(fmt.Errorf("%w of pp_max_micro_batch_size = %s, as that of SGLang %s does: want an integer",
			ErrSchedulerDied, args["pp_max_micro_batch_size"], s.opts.release.name))
		panic(http.ErrAbortHandler)
	}
	done := slices.Repeat([]bool{known}, len(s.host.ranks))
	if set && known {
		done = s.host.setLimit(limit)
	}
	writeBody(w, http.StatusOK, "application/json", mustJSON(done))
}

// stateValue reads the value of a key of /set_internal_state, and adds to f what the schema finds wrong. It reports
// false for one that is no number.
func (s *Server) stateValue(key string, raw json.RawMessage, f *faults) (float64, bool) {
	raw = trimJSON(raw)
	var v float64
	switch {
	case string(raw) == "true":
		return 1, true
	case string(raw) == "false":
		return 0, true
	case !isNull(raw) && json.Unmarshal(raw, &v) == nil:
		return v, true
	case s.opts.release.patch < 18:
		return 0, false
	}
	var text string
	kind, integer, number := "type", "Input should be a valid integer", "Input should be a valid number"
	if json.Unmarshal(raw, &text) == nil && !isNull(raw) {
		if v, err := strconv.ParseFloat(text, 64); err == nil {
			return v, true
		}
		kind, integer, number = "parsing", integer+", unable to parse string as an integer", number+", unable to parse string as a number"
	}
	*f = append(*f, wrong("int_"+kind, stateLoc("server_args", key, "int"), integer, raw),
		wrong("float_"+kind, stateLoc("server_args", key, "float"), number, raw))
	return 0, false
}

// stateLoc and stateFaults name the two ways in which the schema tried to read a body of /set_internal_state.
func stateLoc(path ...string) string {
	return inBody(append([]string{"function-after[build_struct(), SetInternalStateReq]"}, path...)...)
}

func stateFaults(body json.RawMessage, f ...fault) faults {
	return append(faults{fault("{'type': 'is_instance_of', 'loc': " + inBody("is-instance[SetInternalStateReq]") +
		", 'msg': 'Input should be an instance of SetInternalStateReq', 'input': " + pyRepr(body) + ", 'ctx': {'class': 'SetInternalStateReq'}}")}, f...)
}
