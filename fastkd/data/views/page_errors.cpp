// What a command says of a mapped file that can no longer be read: one line that names it, and exit code 1.
//
// The system tells of a page beyond the file's new end, or of a disk that fails, by SIGBUS: in any thread, at any
// instruction, while any lock is held. So nothing but system calls is used here, and no memory is asked for. Which file it
// was is read from /proc/self/maps, which lists all that the process has mapped, whoever mapped it.
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

namespace fastkd {
namespace {

constexpr size_t kMostPath = 4096; // PATH_MAX
constexpr char kBegin[] = "fastkd: error: ";
constexpr char kEnd[] = ": became shorter, or could not be read, while it was being used; put the whole file back and run "
                        "the same command again\n";

struct sigaction before;               // what SIGBUS did
std::atomic_flag telling = ATOMIC_FLAG_INIT;
unsigned char path[kMostPath + 4];     // of the one thread that tells; zeros behind its end
char line[4 * kMostPath + sizeof(kBegin) + sizeof(kEnd)];

// The bytes of a file, one after the other; -1 at its end.
class Bytes {
public:
    explicit Bytes(const char* name) : file(open(name, O_RDONLY | O_CLOEXEC)) {}
    ~Bytes() { close(file); }

    int next() {
        if (at == end) {
            at = 0;
            end = read(file, buffer, sizeof(buffer));
            if (end <= 0) return end = 0, -1;
        }
        return buffer[at++];
    }

    // A number in hexadecimal digits; takes the byte behind it, too.
    uintptr_t number() {
        for (uintptr_t value = 0;;) {
            const int c = next();
            if (c >= '0' && c <= '9') value = 16 * value + (c - '0');
            else if (c >= 'a' && c <= 'f') value = 16 * value + (c - 'a' + 10);
            else return value;
        }
    }

private:
    int file;
    unsigned char buffer[4096];
    ssize_t at = 0, end = 0;
};

bool starts_with(const char* start) { return !std::strncmp(reinterpret_cast<const char*>(path), start, std::strlen(start)); }

// Puts into `path` which file is mapped at an address; returns its length, 0 where there is none. Lines are
// "7f01c000-7f02c000 r--s 00000000 08:01 1234     /path"; what has no file ends before a "/", and devices have no pages on disk.
size_t find_path(uintptr_t address) {
    Bytes maps("/proc/self/maps");
    for (int c = 0; c >= 0;) {
        const uintptr_t start = maps.number(), stop = maps.number();
        do c = maps.next();
        while (c >= 0 && c != '\n' && c != '/');
        size_t length = 0;
        for (; c >= 0 && c != '\n'; c = maps.next())
            if (length < kMostPath) path[length++] = static_cast<unsigned char>(c);
        std::memset(path + length, 0, sizeof(path) - length);
        if (start <= address && address < stop) return starts_with("/dev/") && !starts_with("/dev/shm/") ? 0 : length;
    }
    return 0;
}

// Bytes of the character at `c` that a terminal can be given: none for control characters and what is no UTF-8.
int printable(const unsigned char* c) {
    const int count = c[0] < 0x80 ? 1 : c[0] < 0xC2 ? 0 : c[0] < 0xE0 ? 2 : c[0] < 0xF0 ? 3 : c[0] < 0xF5 ? 4 : 0;
    for (int i = 1; i < count; i++)
        if ((c[i] & 0xC0) != 0x80) return 0;
    const bool is_control = c[0] < 0x20 || c[0] == 0x7F || (c[0] == 0xC2 && c[1] < 0xA0);
    return is_control ? 0 : count;
}

// One write, so that lines of several ranks do not mix; on a terminal below the progress bar.
void tell(size_t length) {
    size_t used = 0;
    const auto add = [&](const void* bytes, size_t count) {
        std::memcpy(line + used, bytes, count);
        used += count;
    };
    if (isatty(STDERR_FILENO)) add("\n", 1);
    add(kBegin, sizeof(kBegin) - 1);
    for (size_t i = 0; i < length;) {
        const int count = printable(path + i);
        if (count) {
            add(path + i, count);
            i += count;
        } else {
            const char* digits = "0123456789abcdef";
            const char escaped[] = {'\\', 'x', digits[path[i] >> 4], digits[path[i] & 15]};
            add(escaped, sizeof(escaped));
            i++;
        }
    }
    add(kEnd, sizeof(kEnd) - 1);
    for (size_t done = 0; done < used;) {
        const ssize_t count = write(STDERR_FILENO, line + done, used - done);
        if (count > 0) done += count;
        else if (errno != EINTR) return;
    }
}

void on_bus_error(int number, siginfo_t* info, void*) {
    const bool is_sent = info->si_code <= 0; // by a process; the address means nothing
    if (!is_sent) {
        while (telling.test_and_set()) pause(); // another thread tells, and ends this one
        if (const size_t length = find_path(reinterpret_cast<uintptr_t>(info->si_addr))) {
            tell(length);
            _exit(1);
        }
        telling.clear();
    }
    sigaction(number, &before, nullptr); // none of our files: what would have happened does, as the instruction is run again
    if (is_sent) raise(number);
}

} // namespace
} // namespace fastkd

#pragma GCC visibility push(default)
extern "C" {

// From now on page errors of mapped files end the process with a line.
void fastkd_tell_page_errors() {
    struct sigaction action = {};
    action.sa_sigaction = fastkd::on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGBUS, &action, &fastkd::before);
}

// They do what they did before.
void fastkd_leave_page_errors() { sigaction(SIGBUS, &fastkd::before, nullptr); }

} // extern "C"
#pragma GCC visibility pop
