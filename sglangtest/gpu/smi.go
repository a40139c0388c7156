package gpu

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

// smiQuery are the columns asked of nvidia-smi (nvidia-smi --help-query-gpu).
const smiQuery = "index,uuid,name,driver_version,memory.total,memory.used,utilization.gpu,utilization.memory,power.draw,temperature.gpu,clocks.current.sm,clocks.current.memory"

// smiValues says what the columns of the answer are in package metrics. Those with a unit have it in their head.
var smiValues = map[string]string{
	"utilization.gpu [%]": metrics.GPUUtilization, "utilization.memory [%]": metrics.GPUMemoryUtilization, "power.draw [W]": metrics.GPUPower,
	"temperature.gpu": metrics.GPUTemperature, "clocks.current.sm [MHz]": metrics.GPUSMClock, "clocks.current.memory [MHz]": metrics.GPUMemoryClock,
}

// errNotTold is a value that this GPU or driver does not offer.
var errNotTold = errors.New("not told")

// smi asks the program nvidia-smi, which takes tens of milliseconds, or seconds if the driver is not kept loaded
// (nvidia-smi -pm 1).
type smi struct {
	program string
	driver  string
}

func findSMI(program string) (source, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, err
	}
	return &smi{program: path}, nil
}

func (s *smi) name() string { return "nvidia-smi, driver " + s.driver }

func (s *smi) close() error { return nil }

func (s *smi) read(ctx context.Context) ([]reading, error) {
	table, err := s.query(ctx, "--query-gpu="+smiQuery)
	if err != nil {
		return nil, err
	}
	if len(table) == 0 {
		return nil, errors.New("nvidia-smi names no GPU")
	}
	s.driver = table[0]["driver_version"]
	readings := make([]reading, len(table))
	for i, row := range table {
		if readings[i], err = row.reading(); err != nil {
			return nil, fmt.Errorf("nvidia-smi: GPU %s: %w", row["index"], err)
		}
	}
	slices.SortFunc(readings, func(a, b reading) int { return cmp.Compare(a.gpu.Index, b.gpu.Index) })
	return readings, nil
}

func (s *smi) processes(ctx context.Context, uuid string) ([]Process, error) {
	table, err := s.query(ctx, "--query-compute-apps=gpu_uuid,pid,process_name,used_memory")
	if err != nil {
		return nil, err
	}
	var ps []Process
	for _, row := range table {
		if row["gpu_uuid"] != uuid {
			continue
		}
		p := Process{Name: row["process_name"]}
		if p.PID, err = strconv.Atoi(row["pid"]); err != nil {
			return nil, fmt.Errorf("nvidia-smi: process: %w", err)
		}
		if strings.HasPrefix(p.Name, "[") { // such as "[Not Found]"
			p.Name = ""
		}
		if p.Memory, err = row.bytes("used_gpu_memory"); err != nil && !errors.Is(err, errNotTold) {
			return nil, fmt.Errorf("nvidia-smi: process %d: %w", p.PID, err)
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// query runs nvidia-smi and reads the table that it writes.
func (s *smi) query(ctx context.Context, what string) ([]smiRow, error) {
	cmd := exec.CommandContext(ctx, s.program, what, "--format=csv")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: %w", s.program, context.Cause(ctx))
		}
		text := strings.TrimSpace(out.String() + complaint.String()) // it complains on standard output
		return nil, fmt.Errorf("%s: %w: %s", s.program, err, text[:min(len(text), 300)])
	}
	return parseSMI(&out)
}

// An smiRow is a row of the table, by the heads of its columns.
type smiRow map[string]string

func parseSMI(r io.Reader) ([]smiRow, error) {
	in := csv.NewReader(r)
	in.TrimLeadingSpace, in.LazyQuotes = true, true
	lines, err := in.ReadAll()
	if err != nil || len(lines) == 0 {
		return nil, fmt.Errorf("nvidia-smi: no table: %w", cmp.Or(err, io.ErrUnexpectedEOF))
	}
	rows := make([]smiRow, 0, len(lines)-1)
	for _, line := range lines[1:] {
		row := smiRow{}
		for i, cell := range line {
			row[lines[0][i]] = cell
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func (r smiRow) reading() (reading, error) {
	var x reading
	var faults []error
	keep := func(err error) { faults = append(faults, err) }
	index, err := strconv.Atoi(r["index"])
	keep(err)
	total, err := r.bytes("memory.total")
	keep(err)
	used, err := r.bytes("memory.used")
	keep(err)
	x.gpu = server.GPU{Index: index, UUID: r["uuid"], Name: r["name"], MemoryTotal: total, MemoryUsed: used}
	if x.gpu.UUID == "" {
		keep(errors.New("no uuid"))
	}
	x.values, err = r.values()
	keep(err)
	return x, errors.Join(faults...)
}

// values returns what the row tells of smiValues.
func (r smiRow) values() (map[string]float64, error) {
	values := map[string]float64{}
	for head, name := range smiValues {
		cell, asked := r[head]
		if !asked {
			return nil, fmt.Errorf("no column %q", head)
		}
		_, unit, _ := strings.Cut(head, " ")
		switch v, err := number(cell, strings.Trim(unit, "[]")); {
		case err == nil:
			values[name] = v
		case !errors.Is(err, errNotTold):
			return nil, fmt.Errorf("%s: %w", head, err)
		}
	}
	return values, nil
}

// bytes reads a cell in MiB.
func (r smiRow) bytes(column string) (int64, error) {
	cell, asked := r[column+" [MiB]"]
	if !asked {
		return 0, fmt.Errorf("no column %q", column+" [MiB]")
	}
	v, err := number(cell, "MiB")
	if err != nil {
		return 0, fmt.Errorf("%s: %w", column, err)
	}
	return int64(v) << 20, nil
}

// number reads a cell with a unit, such as "98 %", or without. "[N/A]", "[Not Supported]" and the like are errNotTold.
func number(cell, unit string) (float64, error) {
	switch strings.Trim(cell, "[]") {
	case "N/A", "Not Supported", "Insufficient Permissions":
		return 0, errNotTold
	}
	digits := cell
	if unit != "" {
		var ok bool
		if digits, ok = strings.CutSuffix(cell, " "+unit); !ok {
			return 0, fmt.Errorf("%q: want a number of %s", cell, unit)
		}
	}
	v, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0, fmt.Errorf("%q: want a number", cell)
	}
	return v, nil
}
