package sglangtest

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A namedDataset is a dataset that a config can name.
type namedDataset struct {
	name string
	file bool // it is at dataset_path
	// lengths: it gives the lengths of the answers, at least where it is complete.
	lengths bool
	open    func(c NodeConfig, path string, opts []load.FileOption) load.Dataset
}

func fromFile(open func(string, ...load.FileOption) load.Dataset) func(NodeConfig, string, []load.FileOption) load.Dataset {
	return func(_ NodeConfig, path string, opts []load.FileOption) load.Dataset { return open(path, opts...) }
}

// datasets is the one table of datasets: what is here is known to configs, their checks and their messages. [DatasetNames] says
// what each is.
var datasets = []namedDataset{
	{"azure-conversation", false, true, func(NodeConfig, string, []load.FileOption) load.Dataset { return load.AzureConversation() }},
	{"azure", true, true, fromFile(load.AzureTrace)},
	{"burstgpt", true, true, fromFile(load.BurstGPT)},
	{"sharegpt", true, false, fromFile(load.ShareGPT)},
	{"jsonl", true, true, fromFile(load.JSONLines)},
	{"mooncake", true, true, fromFile(load.Mooncake)},
	{randomDataset, false, true, func(c NodeConfig, _ string, _ []load.FileOption) load.Dataset {
		return load.Random(c.RandomInputLen, c.RandomOutputLen, c.RandomRangeRatio)
	}},
}

const randomDataset = "random"

// DatasetNames lists the datasets that a config can name.
//
//	azure-conversation  2,000 requests of a production trace, built in
//	azure               an Azure LLM trace (CSV) at dataset_path
//	burstgpt            a BurstGPT trace (CSV) at dataset_path
//	sharegpt            first turns of ShareGPT conversations (JSON or JSON lines) at dataset_path
//	jsonl               requests in the format of load.JSONLines at dataset_path
//	mooncake            a Mooncake trace (JSON lines) at dataset_path
//	random              random token ids, as bench_serving's random-ids
func DatasetNames() []string {
	names := make([]string, len(datasets))
	for i, d := range datasets {
		names[i] = d.name
	}
	return names
}

// The values of odd_rows.
const (
	oddRowsFail = "fail"
	oddRowsSkip = "skip"
)

// dataset returns the dataset that the config names, or all that is wrong with the keys about it.
func (c NodeConfig) dataset() (load.Dataset, error) {
	var faults []error
	check := func(ok bool, key, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
		}
	}
	i := slices.IndexFunc(datasets, func(d namedDataset) bool { return d.name == c.DatasetName })
	if i < 0 {
		return nil, fmt.Errorf("dataset_name: %q; want one of %s", c.DatasetName, strings.Join(DatasetNames(), ", "))
	}
	d := datasets[i]
	check(!d.file || c.DatasetPath != "", "dataset_path", "required with dataset_name %q", c.DatasetName)
	check(d.file || c.DatasetPath == "", "dataset_path", "dataset %q is not a file", c.DatasetName)
	if d.name == randomDataset {
		check(c.RandomInputLen > 0, "random_input_len", "%d; want ≥ 1", c.RandomInputLen)
		check(c.RandomOutputLen > 0, "random_output_len", "%d; want ≥ 1", c.RandomOutputLen)
		check(c.NumPrompts > 0 || c.Duration > 0, "num_prompts", "with dataset_name \"random\", num_prompts or duration is required")
	} else {
		check(c.RandomInputLen == 0, "random_input_len", "only with dataset_name \"random\"")
		check(c.RandomOutputLen == 0, "random_output_len", "only with dataset_name \"random\"")
		check(c.RandomRangeRatio == 0, "random_range_ratio", "only with dataset_name \"random\"")
	}
	check(c.RandomRangeRatio >= 0 && c.RandomRangeRatio <= 1, "random_range_ratio", "%v; want 0 to 1", c.RandomRangeRatio)
	check(d.lengths || c.SamplingParams != nil && c.SamplingParams.MaxNewTokens != nil, "sampling_params.max_new_tokens",
		"required with dataset_name %q, which gives no output lengths", c.DatasetName)

	var opts []load.FileOption
	check(d.file || c.TimeUnit == "", "time_unit", "dataset %q is not a file", c.DatasetName)
	check(d.file || c.BlockSize == 0, "block_size", "dataset %q is not a file", c.DatasetName)
	check(d.file || c.OddRows == "", "odd_rows", "dataset %q is not a file", c.DatasetName)
	check(c.OddRows == "" || c.OddRows == oddRowsFail || c.OddRows == oddRowsSkip, "odd_rows", "%q; want %q or %q", c.OddRows, oddRowsFail, oddRowsSkip)
	if c.TimeUnit != "" {
		opts = append(opts, load.WithTimeUnit(c.TimeUnit))
	}
	if c.BlockSize != 0 {
		opts = append(opts, load.WithBlockSize(c.BlockSize))
	}
	if c.OddRows == oddRowsSkip {
		opts = append(opts, load.SkipOddRows())
	}
	ds := d.open(c, filepath.FromSlash(c.DatasetPath), opts)
	if v, ok := ds.(interface{ Validate() error }); ok && d.file && len(opts) > 0 {
		if err := v.Validate(); err != nil {
			faults = append(faults, fmt.Errorf("time_unit, block_size: %w", err))
		}
	}
	return ds, errors.Join(faults...)
}
