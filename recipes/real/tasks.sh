# Read by run.sh and compare.sh: sets `drawn`, the flags of a task, and defines what both use. Knows $task, and $out when used.
case $task in
counting) # measured with SmolLM2-135M-Instruct: docs/real_model.md
    drawn=(--task counting --few-shot "$here/counting.jsonl")
    ;;
gsm8k) # for a model that solves some of it; GSM8K is the folder of the published train.jsonl and test.jsonl
    : "${GSM8K:=data/gsm8k}"
    for file in "$GSM8K/train.jsonl" "$GSM8K/test.jsonl"; do
        if [ ! -f "$file" ]; then
            echo "$0: error: $file is missing; fix: set GSM8K to the folder of GSM8K's train.jsonl and test.jsonl" >&2
            exit 2
        fi
    done
    drawn=(--task gsm8k --system "Reason step by step, one step a line. The last line is '#### ' and the answer.")
    ;;
*) usage ;;
esac

# Print what --prompts takes: the number, or a file of so many questions; those of a part are in no other part.
prompts() {
    local part=$1 n=$2 file="$out/prompts-$1-$2.jsonl"
    if [ "$task" = gsm8k ]; then
        if [ ! -f "$file" ]; then
            case $part in
            train) head -n "$n" "$GSM8K/train.jsonl" ;;
            heldout) tail -n "$n" "$GSM8K/train.jsonl" ;;
            *) head -n "$n" "$GSM8K/test.jsonl" ;;
            esac >"$file.partial"
            mv "$file.partial" "$file"
        fi
        echo "$file"
    else
        echo "$n"
    fi
}

# Run a command, say it and the minutes it took.
stage() {
    local name=$1 start=$SECONDS
    shift
    echo "$name: $*"
    case $1 in
    rmtools) shift && "${PYTHON:-python}" -m rmtools "$@" ;;
    *) "$@" ;;
    esac
    echo "$name: $(((SECONDS - start) / 60)) min $(((SECONDS - start) % 60)) s"
}
