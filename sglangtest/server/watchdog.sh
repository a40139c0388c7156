# Waits for the end of its input, that is of the program that launched a server, and then removes the server:
# its processes, its files in /dev/shm and its folder. That program kills it when there is nothing to wait for.
#   $1  NAME=VALUE in the environment of the server's processes
#   $2  the server's folder
#   $3, $4  its logs
trap '' HUP INT QUIT TERM PIPE
marker=$1 folder=$2 out=$3 err=$4
group= shared=
while read -r what value; do
	case $what in
	group) group=$value ;;
	shared) shared="$shared $value" ;;
	esac
done

# The members: of the process group, or with the marker, or with output to the logs (see members in Go).
find_members() {
	members=
	marked="
$(grep -lF -- "$marker" /proc/[0-9]*/environ 2>/dev/null)
" # one grep for all: a host can have thousands of processes
	for dir in /proc/[0-9]*; do
		pid=${dir#/proc/}
		[ "$pid" = $$ ] && continue
		{ IFS= read -r stat <"$dir/stat"; } 2>/dev/null || continue
		rest=${stat##*) }
		case $rest in Z* | X*) continue ;; esac
		rest=${rest#* } rest=${rest#* }
		if [ -n "$group" ] && [ "${rest%% *}" = "$group" ]; then
			members="$members $pid"
		elif [ "$dir/fd/1" -ef "$out" ] || [ "$dir/fd/2" -ef "$err" ] || [ "$dir/fd/1" -ef "$err" ] || [ "$dir/fd/2" -ef "$out" ]; then
			members="$members $pid"
		else
			case $marked in *"
$dir/environ
"*) members="$members $pid" ;; esac
		fi
	done
}

find_members
for pid in $members; do kill -STOP "$pid" 2>/dev/null; done # while their files are read
for pid in $members; do
	for file in $({ cat "/proc/$pid/maps"; ls -l "/proc/$pid/fd"; } 2>/dev/null | grep -oE '/dev/shm/(sglang_loads_|sglang_host_pool_|sgl_shm_|multi_tokenizer_args_|psm_|nccl-|cuda\.shm\.)[^ ]*'); do
		shared="$shared $file"
	done
done
tries=0 empty=0
while [ $tries -lt 300 ]; do # 30 s, as a GPU driver can hold a process
	tries=$((tries + 1))
	[ -n "$group" ] && kill -KILL -- "-$group" 2>/dev/null
	for pid in $members; do kill -KILL "$pid" 2>/dev/null; done
	sleep 0.1
	find_members
	if [ -n "$members" ]; then empty=0; else empty=$((empty + 1)); fi
	[ $empty -eq 2 ] && break # twice: the server may have been about to start
done
for file in $shared; do rm -f -- "$file"; done
rm -rf -- "$folder"
