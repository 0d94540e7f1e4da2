"""Pong's game logic, out of the cartridge that ale_py brings along, as a C header.

    python search/translate.py FOLDER      writes FOLDER/game.h

A cartridge has a 6502's machine code in it. From where a frame of ALE's begins, this follows every
branch, jump and call, and writes each instruction that is reached as a line of C, under a label
that is its address; calls become functions that the compiler puts in place. `pong.h` is what the
lines stand in: it has the registers, the macros that are used here, and the chip that draws.

Left out is what the game does to be drawn: waiting for the beam, graphics, colours of the walls,
sound. In the places of `BY_HAND` stands C instead, the longest of it `pong_court` in `pong.h`, for
the loop that draws the court and meanwhile sees how far the paddles are turned. Only the game that
ALE starts, number 0, is translated: where another would be jumped to, the program traps.

The header holds the cartridge's code. It is made where it is used, and belongs in no repository.
"""

import hashlib
import pathlib
import sys

import ale_py

MD5 = "60e0ea3cbe0913d39803477945e9e5ec"  # of the cartridge that all this is about

# Of the 6502's instructions, those that are met. What follows the opcode: imm a value, zp and abs
# an address of one byte and of two, with an x or y at the end an index in that register, rel a
# distance, ind the address of an address; acc and imp nothing.
INSTRUCTIONS = """
ADC imm:69 zp:65 zpx:75 abx:7D aby:79; AND imm:29 zp:25 zpx:35 abx:3D aby:39; ASL acc:0A
BCC rel:90; BCS rel:B0; BEQ rel:F0; BMI rel:30; BNE rel:D0; BPL rel:10; BVC rel:50; BVS rel:70
BIT zp:24 abs:2C; BRK imp:00; CLC imp:18; CLD imp:D8; CMP imm:C9 zp:C5; CPX imm:E0 zp:E4
CPY imm:C0; DEC zp:C6; DEX imp:CA; DEY imp:88; EOR imm:49 zp:45; INC zp:E6 zpx:F6; INX imp:E8
INY imp:C8; JMP abs:4C ind:6C; JSR abs:20; LDA imm:A9 zp:A5 zpx:B5 abs:AD abx:BD aby:B9
LDX imm:A2 zp:A6; LDY imm:A0 zp:A4 zpx:B4; LSR acc:4A; ORA imm:09 zp:05 abs:0D; ROR acc:6A
RTS imp:60; SBC imm:E9 zp:E5; SEC imp:38; SEI imp:78; STA zp:85 zpx:95 abs:8D aby:99; STX zp:86
STY zp:84; TAX imp:AA; TAY imp:A8; TSX imp:BA; TXA imp:8A; TXS imp:9A; TYA imp:98
"""
LENGTHS = {"imp": 1, "acc": 1, "imm": 2, "rel": 2, "zp": 2, "zpx": 2,
           "abs": 3, "abx": 3, "aby": 3, "ind": 3}  # fmt: skip
INDEX = {"zpx": "cpu.x", "abx": "cpu.x", "aby": "cpu.y"}

# Instruction -> C; {0} is its operand. FLAGS sets the flags N and Z to those of a value.
STATEMENTS = {
    "LDA": "FLAGS(cpu.a = {0});", "LDX": "FLAGS(cpu.x = {0});", "LDY": "FLAGS(cpu.y = {0});",
    "TAX": "FLAGS(cpu.x = cpu.a);", "TAY": "FLAGS(cpu.y = cpu.a);",
    "TXA": "FLAGS(cpu.a = cpu.x);", "TYA": "FLAGS(cpu.a = cpu.y);",
    "TSX": "FLAGS(cpu.x = cpu.sp);", "TXS": "cpu.sp = cpu.x;",
    "INX": "FLAGS(++cpu.x);", "INY": "FLAGS(++cpu.y);", "INC": "FLAGS(++{0});",
    "DEX": "FLAGS(--cpu.x);", "DEY": "FLAGS(--cpu.y);", "DEC": "FLAGS(--{0});",
    "AND": "FLAGS(cpu.a &= {0});", "ORA": "FLAGS(cpu.a |= {0});", "EOR": "FLAGS(cpu.a ^= {0});",
    "ADC": "ADD({0});", "SBC": "ADD((uint8_t)~{0});",
    "CMP": "COMPARE(cpu.a, {0});", "CPX": "COMPARE(cpu.x, {0});", "CPY": "COMPARE(cpu.y, {0});",
    "ASL": "cpu.carry = cpu.a >> 7; FLAGS(cpu.a <<= 1);",
    "LSR": "cpu.carry = cpu.a & 1; FLAGS(cpu.a >>= 1);", "ROR": "ROTATE_RIGHT(cpu.a);",
    "BIT": "TEST_BITS({0});", "CLC": "cpu.carry = 0;", "SEC": "cpu.carry = 1;",
    "SEI": ";", "CLD": ";",
}  # fmt: skip
CONDITIONS = {
    "BCC": "!cpu.carry", "BCS": "cpu.carry", "BEQ": "!cpu.zero", "BNE": "cpu.zero",
    "BMI": "cpu.negative & 0x80", "BPL": "!(cpu.negative & 0x80)",
    "BVC": "!cpu.overflow", "BVS": "cpu.overflow",
}  # fmt: skip

# The chip that draws, the TIA, and the one with the switches: what the game reads of them, and
# what it writes that matters. An address with an index begins a row of registers.
READ = {0x280: "pong->joystick", 0x282: "pong->switches", 0x284: "0",
        0x02: "pong->ball_met[0]", 0x03: "pong->ball_met[1]",
        0x06: "pong->ball_met_wall"}  # fmt: skip
READ_INDEXED = {0x32: "pong->ball_met[{index} & 3]"}
WRITE = {0x27: "pong->ball_delayed = {value} & 1;", 0x2A: "pong_move(pong);",
         0x2B: "memset(pong->motion, 0, sizeof pong->motion);",
         0x2C: "pong->ball_met[0] = pong->ball_met[1] = pong->ball_met_wall = 0;"}  # fmt: skip
WRITE_INDEXED = {0x06: "pong->colours[{index} & 3] = {value};",
                 0x20: "pong->motion[{index} & 7] = {value};"}  # fmt: skip

COLD_START = 0xF000
NEW_FRAME = 0xF0CE  # where ALE takes a frame to end: the beam has just gone back up
# Address -> C that stands there instead, and the address to go on at, or None to return.
BY_HAND = {
    0xF007: ("memset(ram, 0, 128); pong->x[BALL] = 2; FLAGS(cpu.a = cpu.x = 0);", 0xF00C),
    0xF094: ("FLAGS(cpu.a = 0);", 0xF099),  # waits for the timer
    0xF21F: ("FLAGS(cpu.a = 0);", 0xF224),  # and again
    # waits for the beam to come to where an object is to be, and places it there
    0xF457: ("pong_place(pong, cpu.x, 15 * cpu.y + 24); FLAGS(cpu.y = 0xff);", 0xF45C),
    0xF585: ("ram[7] = rom[((ram[0x47] | ram[0x48] << 8) + 4) & 0x7ff] & 15;"
             " FLAGS(cpu.a = cpu.y = 0);", None),  # draws the score
    0xF5B8: ("FLAGS(cpu.a = cpu.y = 0);", None),  # draws empty lines
    0xF5D3: ("pong_court(pong);", 0xF63E),
}  # fmt: skip
# Where a jump's address is looked up -> the byte of the cartridge that has it for game 0.
JUMPS = {0xA1: 0xF659 + 6, 0xA3: 0xF659 + 8}


class Translation:
    """The functions of one cartridge, in `functions` in the order in which C needs them."""

    def __init__(self, rom):
        self.rom, self.functions, self.called = rom, [], set()
        lines = INSTRUCTIONS.replace("\n", ";").split(";")
        self.instructions = {
            int(code, 16): (name, mode)
            for name, *codes in filter(None, map(str.split, lines))
            for mode, code in (form.split(":") for form in codes)
        }

    def at(self, address):
        return self.rom[address & 0x7FF]

    def address(self, pc, mode):
        """Return the address after the opcode at pc."""
        low = self.at(pc + 1)
        return low | self.at(pc + 2) << 8 if LENGTHS[mode] == 3 else low

    def operand(self, pc, mode):
        """Return the C of the operand of an instruction."""
        address, index = self.address(pc, mode), INDEX.get(mode)
        if mode == "imm":
            return str(address)
        if 0x80 <= address < 0x100:
            return f"ram[({address & 0x7F:#x} + {index}) & 0x7f]" if index else ram(address)
        if address >= 0xF000:
            where = f"rom[({address & 0x7FF:#x} + {index}) & 0x7ff]"
            return where if index else str(self.at(address))
        if index:
            return READ_INDEXED[address].format(index=index)
        return READ.get(address if address >= 0x280 else address & 15, "0")

    def store(self, pc, mode, value):
        """Return the C of an instruction that stores a value; ";" if the store does not matter."""
        address, index = self.address(pc, mode), INDEX.get(mode)
        if 0x80 <= address < 0x100:
            return f"{self.operand(pc, mode)} = {value};"
        writes = WRITE_INDEXED if index else WRITE
        return writes.get(address, ";").format(index=index, value=value)

    def step(self, pc):
        """Return the C of the instruction at pc, and the addresses that may follow it.

        The last of them is the one that follows without a jump. Calls are translated when met.
        """
        if pc in BY_HAND:
            code, after = BY_HAND[pc]
            return (code, [after]) if after else (code + " RETURN;", [])
        name, mode = self.instructions[self.at(pc)]
        after, there = pc + LENGTHS[mode], self.address(pc, mode)
        if mode == "rel":
            there = after + (there ^ 0x80) - 0x80
            return f"if ({CONDITIONS[name]}) goto {label(there)};", [there, after]
        if mode == "ind":
            low = self.at(JUMPS[there])
            return f"if ({ram(there)} != {low}) {{ __builtin_trap(); }}", [0xF300 | low]
        if name == "JMP":
            return "", [there]
        if name == "RTS":
            return "RETURN;", []
        if name == "JSR":
            self.function(there)
            pushed = f"PUSH({pc + 2 >> 8}); PUSH({pc + 2 & 255});"
            return f"{pushed} cpu = sub_{there:04X}(pong, cpu); cpu.sp += 2;", [after]
        if name == "BRK":  # the game's interrupt handler swaps the halves of a byte
            after = pc + 2
            pushed = f"PUSH({after >> 8}); PUSH({after & 255}); PUSH(STATUS);"
            return f"{pushed} cpu.sp += 3; cpu.a = cpu.a << 4 | cpu.a >> 4;", [after]
        if name in ("STA", "STX", "STY"):
            return self.store(pc, mode, f"cpu.{name[2].lower()}"), [after]
        operand = self.operand(pc, mode) if mode not in ("imp", "acc") else None
        return STATEMENTS[name].format(operand), [after]

    def body(self, *entries):
        """Return the lines of all that is reached from addresses, up to a return or a new frame."""
        found, todo = {}, list(entries)
        while todo:
            pc = todo.pop()
            if pc not in found:
                code, after = found[pc] = self.step(pc)
                todo += [there for there in after if there != NEW_FRAME]
        lines, order = [], sorted(found)
        jumped_to = {there for _, after in found.values() for there in after[:-1]} | set(entries)
        for pc, following in zip(order, [*order[1:], None]):
            jumped_to.update(there for there in found[pc][1] if there != following)
        for pc, following in zip(order, [*order[1:], None]):
            code, after = found[pc]
            if after and (after[-1] != following or following == NEW_FRAME):
                code += f" goto {label(after[-1])};"
            here = "BEGIN: " if pc == NEW_FRAME else f"{label(pc)}: " if pc in jumped_to else ""
            lines.append(here + (code or ";"))
        return lines

    def function(self, entry):
        """Translate the function at an address, if it has not been translated yet."""
        if entry not in self.called:
            self.called.add(entry)
            head = f"static inline __attribute__((always_inline)) Cpu sub_{entry:04X}"
            lines = [head + "(Pong *pong, Cpu cpu) {", "uint8_t *ram = pong->ram; (void)ram;",
                     f"goto {label(entry)};", *self.body(entry), "}"]  # fmt: skip
            self.functions.append("\n".join(lines).replace("RETURN", "return cpu"))

    def header(self):
        """Return the header's text: the cartridge as an array, the functions, and `pong_run`."""
        body = self.body(COLD_START, NEW_FRAME)
        main = ["static void pong_run(Pong *pong, int cold) {", "uint8_t *ram = pong->ram;",
                "Cpu cpu = {.sp = 0xff};", f"if (cold) goto {label(COLD_START)};", "goto BEGIN;",
                *body, f"{label(NEW_FRAME)}:;", "}"]  # fmt: skip
        rom = ", ".join(map(str, self.rom))
        top = ["// Made by translate.py.", f"static const uint8_t rom[2048] = {{{rom}}};"]
        return "\n".join([*top, *self.functions, *main, ""])


def ram(address):
    """Return the C of a byte of memory."""
    return f"ram[{address & 0x7F:#x}]"


def label(address):
    """Return the label of an address in C."""
    return f"L{address:04X}"


def translate(folder):
    """Write game.h to a folder. Raises ValueError if the cartridge is another one."""
    rom = (pathlib.Path(ale_py.__file__).parent / "roms" / "pong.bin").read_bytes()
    if hashlib.md5(rom).hexdigest() != MD5:
        raise ValueError("ale_py's pong.bin is not the cartridge that is translated here")
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    pathlib.Path(folder, "game.h").write_text(Translation(rom).header())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    translate(sys.argv[1])
