package sim

import (
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
)

// harmless are the arguments that change neither times nor capacity nor schedule of generations, so that a label need not
// name them. One that is not here may do so: SGLang gets new ones with each version.
var harmless = strings.Fields(`
	config help
	host port nccl_port grpc_port dist_init_addr fastapi_root_path base_gpu_id gpu_id_step
	served_model_name tokenizer_path weight_version file_storage_path

	load_format model_loader_extra_config download_dir revision trust_remote_code model_checksum delete_ckpt_after_loading
	decrypted_config_file custom_weight_loader weight_loader_disable_mmap weight_loader_drop_cache_after_load
	weight_loader_prefetch_checkpoints weight_loader_prefetch_num_threads modelexpress_config
	remote_instance_weight_loader_backend remote_instance_weight_loader_seed_instance_ip
	remote_instance_weight_loader_seed_instance_service_port remote_instance_weight_loader_send_weights_group_ports
	remote_instance_weight_loader_start_seed_via_transfer_engine checkpoint_engine_wait_weights_before_ready
	startup_weight_load_mode weight_cache_mode weight_cache_socket weight_cache_timeout

	api_key admin_api_key ssl_keyfile ssl_certfile ssl_ca_certs ssl_keyfile_password enable_ssl_refresh allowed_media_domains

	log_level log_level_http log_requests log_requests_level log_requests_format log_requests_target
	uvicorn_access_log_exclude_prefixes show_time_cost enable_request_time_stats_logging gc_warning_threshold_secs
	decode_log_interval crash_dump_folder enable_trace trace_modules otlp_traces_endpoint otlp_service_name

	enable_metrics enable_metrics_for_all_schedulers enable_mfu_metrics tokenizer_metrics_custom_labels_header
	tokenizer_metrics_allowed_custom_labels extra_metric_labels bucket_time_to_first_token bucket_inter_token_latency
	bucket_e2e_request_latency collect_tokens_histogram prompt_tokens_buckets generation_tokens_buckets
	prefill_delayer_forward_passes_buckets prefill_delayer_wait_seconds_buckets export_metrics_to_file
	export_metrics_to_file_dir load_snapshot_publish_interval load_publish_endpoint enable_cache_report

	watchdog_timeout soft_watchdog_timeout dist_timeout skip_server_warmup warmups
	reasoning_parser tool_call_parser stream_response_default_include_usage`)

// calibration are the values that the server of the profile [H100Llama8B] had, given or resolved, where SGLang's
// default for the argument is another or none.
var calibration = map[string][]any{
	"device": {"cuda"}, "dtype": {"bfloat16"}, "kv_cache_dtype": {"bfloat16", "bf16"}, "mem_fraction_static": {0.83},
	"attention_backend": {"fa3"}, "prefill_attention_backend": {"fa3"}, "decode_attention_backend": {"fa3"},
	"sampling_backend": {"pytorch"}, "grammar_backend": {"none", "xgrammar"}, // no grammar was asked for
	"cuda_graph_backend_decode": {"full"}, "cuda_graph_max_bs_decode": {256},
	"cuda_graph_backend_prefill": {"breakable"}, "cuda_graph_max_bs_prefill": {8192},
}

// A lack is an argument that a server shows and does not simulate, although in SGLang it may change times, capacity or schedule.
type lack struct{ name, text string }

// lacks returns those of the arguments of WithServerArgs that are no matter of course to a server of that profile: they are
// neither harmless nor what it was calibrated with or SGLang's default.
func (p Profile) lacks(version string, args map[string]any) []lack {
	table, err := sglargs.For(version)
	if err != nil {
		return nil // refused by settings.apply
	}
	var out []lack
	for _, name := range slices.Sorted(maps.Keys(args)) {
		v := args[name]
		if arg, err := table.Find(name); err == nil {
			if normal, err := table.Normal(arg, v); err == nil {
				v = normal
			}
		}
		switch {
		case name == "tp_size":
			if v != p.gpus() {
				out = append(out, lack{name, fmt.Sprintf("tp_size %v", v)})
			}
		case slices.Contains(harmless, name) || v == nil || reflect.DeepEqual(v, table.Default(name)):
		case name == "model_path":
			if s := fmt.Sprint(v); !strings.EqualFold(path.Base(s), path.Base(p.ModelPath)) {
				out = append(out, lack{name, fmt.Sprintf("model %s (profile: %s)", inLabel(s), p.ModelPath)})
			}
		case p.Name == calibratedProfile && slices.ContainsFunc(calibration[name], func(c any) bool { return reflect.DeepEqual(c, v) }):
		case v == true:
			out = append(out, lack{name, name})
		default:
			text, isText := v.(string)
			if !isText {
				text = string(mustJSON(v))
			}
			out = append(out, lack{name, name + " " + inLabel(text)})
		}
	}
	return out
}

// gpus is the number of GPUs of the profile, with which [Profile.GPU] begins unless it is one.
func (p Profile) gpus() int {
	first, _, _ := strings.Cut(p.GPU, " ")
	if n, err := strconv.Atoi(first); err == nil {
		return n
	}
	return 1
}

// inLabel is a value as it can stand in an HTTP header, cut to a length that says enough.
func inLabel(s string) string {
	const most = 80
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		s = strconv.QuoteToASCII(s)
	}
	if len(s) > most {
		s = s[:most] + "..."
	}
	return s
}

func lacksText(lacks []lack) string {
	texts := make([]string, len(lacks))
	for i, l := range lacks {
		texts[i] = l.text
	}
	return "arguments not simulated: " + strings.Join(texts, ", ")
}

// Unsimulated returns the names of the arguments of [WithServerArgs] that the label says are not simulated, in order.
func (s *Server) Unsimulated() []string {
	names := make([]string, len(s.lacks))
	for i, l := range s.lacks {
		names[i] = l.name
	}
	return names
}
