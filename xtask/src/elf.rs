//! The BPF object as ELF: making it small, and making sure that it is still the same program.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget,
    build::elf::{Builder, SectionData},
    elf,
    read::elf::ElfFile64,
};

/// DWARF, which nothing reads in a BPF object; BTF has the types and lines that the kernel and the loader read.
fn is_debug(section: &[u8]) -> bool {
    section.starts_with(b".debug_") || section.starts_with(b".rel.debug_")
}

/// `object` without its DWARF.
pub(crate) fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the built BPF object is no ELF file")?;
    for section in &mut builder.sections {
        section.delete = is_debug(&section.name);
    }
    builder.delete_orphans();
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        // LLVM keeps the names of sections and of symbols in one table; the builder writes two.
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the BPF object without DWARF")?;
    let (before, after) = (Content::read(object)?, Content::read(&stripped)?);
    if let Some(changed) = before.first_change(&after) {
        bail!(
            "stripping changed {changed} of the BPF programs: the `object` crate writes something unlike what it read"
        );
    }
    Ok(stripped)
}

/// All that a loader reads, by names in place of indices and offsets, which stripping changes.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    sections: BTreeMap<Vec<u8>, SectionContent>,
    symbols: Vec<SymbolContent>,
}

#[derive(Debug, PartialEq, Eq)]
struct SectionContent {
    kind: String,
    flags: String,
    align: u64,
    data: Vec<u8>,
    /// Where, which kind, and to what.
    relocations: Vec<(u64, String, Target)>,
}

/// What, its size, its kind, and whether it is visible outside.
type SymbolContent = (Target, u64, String, bool);

/// Name, section and address of the symbol: section symbols have no name, and static ones may share one.
type Target = (Vec<u8>, Option<Vec<u8>>, u64);

impl Content {
    /// What differs in `after`, if anything.
    fn first_change(&self, after: &Self) -> Option<String> {
        let names = self.sections.keys().chain(after.sections.keys());
        let section = names.into_iter().find(|name| self.sections.get(*name) != after.sections.get(*name));
        let section = section.map(|name| format!("the section {}", String::from_utf8_lossy(name)));
        section.or_else(|| (self.symbols != after.symbols).then(|| "the symbols".to_owned()))
    }

    fn read(object: &[u8]) -> Result<Self> {
        let file = ElfFile64::<object::Endianness>::parse(object).context("the BPF object is no ELF file")?;
        let section_name = |index| Ok::<_, object::Error>(file.section_by_index(index)?.name_bytes()?.to_vec());
        let mut sections = BTreeMap::new();
        for section in file.sections() {
            let name = section.name_bytes()?;
            // The names themselves: fewer after stripping. Relocations and symbols are read as such.
            if is_debug(name) || [".strtab", ".shstrtab", ".symtab"].iter().any(|table| table.as_bytes() == name) {
                continue;
            }
            let mut relocations = Vec::new();
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
                let symbol = file.symbol_by_index(symbol)?;
                let section = symbol.section_index().map(section_name).transpose()?;
                let target = (symbol.name_bytes()?.to_vec(), section, symbol.address());
                relocations.push((offset, format!("{:?} {}", relocation.flags(), relocation.addend()), target));
            }
            let content = SectionContent {
                kind: format!("{:?}", section.kind()),
                flags: format!("{:?}", section.flags()),
                align: section.align(),
                // Relocation sections hold indices of symbols, which change; what they mean is compared above.
                data: if name.starts_with(b".rel") { Vec::new() } else { section.data()?.to_vec() },
                relocations,
            };
            sections.insert(name.to_vec(), content);
        }
        let mut symbols = Vec::new();
        for symbol in file.symbols() {
            let section = symbol.section_index().map(section_name).transpose()?;
            if section.as_deref().is_some_and(is_debug) {
                continue;
            }
            let kind = format!("{:?}", symbol.kind());
            let name = symbol.name_bytes()?.to_vec();
            symbols.push(((name, section, symbol.address()), symbol.size(), kind, symbol.is_global()));
        }
        symbols.sort();
        Ok(Self { sections, symbols })
    }
}

#[cfg(test)]
mod tests {
    use object::build::elf::Relocation;

    use super::*;

    /// A program, a map that it refers to, BTF and DWARF with a relocation each.
    fn example() -> Result<Vec<u8>> {
        let mut builder = Builder::new(object::Endianness::Little, true);
        builder.header.e_type = elf::ET_REL;
        builder.header.e_machine = elf::EM_BPF;
        let section = |builder: &mut Builder<'_>, name: &'static str, flags| {
            let section = builder.sections.add();
            section.name = name.as_bytes().into();
            section.sh_type = elf::SHT_PROGBITS;
            section.sh_flags = flags;
            section.sh_addralign = 8;
            section.data = SectionData::Data(vec![7; 16].into());
            section.id()
        };
        let program = section(&mut builder, "tp_btf/example", elf::SHF_ALLOC | elf::SHF_EXECINSTR);
        let maps = section(&mut builder, "maps", elf::SHF_ALLOC | elf::SHF_WRITE);
        let debug = section(&mut builder, ".debug_info", elf::SectionFlags(0));
        let btf = section(&mut builder, ".BTF", elf::SectionFlags(0));
        for (number, id) in [program, maps].into_iter().enumerate() {
            builder.sections.get_mut(id).sh_offset = 64 + 16 * number as u64;
        }
        let symtab = builder.sections.add();
        symtab.name = b".symtab"[..].into();
        symtab.sh_type = elf::SHT_SYMTAB;
        symtab.sh_addralign = 8;
        symtab.sh_entsize = 24;
        symtab.data = SectionData::Symbol;
        let symtab = symtab.id();
        let strtab = builder.sections.add();
        strtab.name = b".strtab"[..].into();
        strtab.sh_type = elf::SHT_STRTAB;
        strtab.sh_addralign = 1;
        strtab.data = SectionData::String;
        let strtab = strtab.id();
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
        builder.sections.get_mut(symtab).sh_link_section = Some(strtab);

        let symbol = |builder: &mut Builder<'_>, name: &'static str, section, bind| {
            let symbol = builder.symbols.add();
            symbol.name = name.as_bytes().into();
            symbol.section = Some(section);
            symbol.set_st_info(bind, if name.is_empty() { elf::STT_SECTION } else { elf::STT_OBJECT });
            symbol.id()
        };
        let debug_symbol = symbol(&mut builder, "", debug, elf::STB_LOCAL);
        let map = symbol(&mut builder, "EVENTS", maps, elf::STB_GLOBAL);
        for (name, of, symbol) in
            [(".reltp_btf/example", program, map), (".rel.debug_info", debug, debug_symbol), (".rel.BTF", btf, map)]
        {
            let section = builder.sections.add();
            section.name = name.as_bytes().into();
            section.sh_type = elf::SHT_REL;
            section.sh_flags = elf::SHF_INFO_LINK;
            section.sh_addralign = 8;
            section.sh_entsize = 16;
            section.sh_link_section = Some(symtab);
            section.sh_info_section = Some(of);
            let relocation = Relocation { r_offset: 8, symbol: Some(symbol), r_type: elf::R_BPF_64_64, r_addend: 0 };
            section.data = SectionData::Relocation(vec![relocation]);
        }
        builder.set_section_sizes();
        let mut written = Vec::new();
        builder.write(&mut written)?;
        Ok(written)
    }

    #[test]
    fn stripping_takes_the_dwarf_and_nothing_else() -> Result<()> {
        let before = example()?;
        let after = strip(&before)?;
        assert!(after.len() < before.len());
        let file = ElfFile64::<object::Endianness>::parse(&*after)?;
        let mut names = file.sections().map(|section| section.name()).collect::<Result<Vec<_>, _>>()?;
        names.sort();
        let kept =
            [".BTF", ".rel.BTF", ".reltp_btf/example", ".shstrtab", ".strtab", ".symtab", "maps", "tp_btf/example"];
        assert_eq!(names, kept);
        let program = file.section_by_name("tp_btf/example").context("no program")?;
        let relocations: Vec<_> = program.relocations().collect();
        assert_eq!(relocations.len(), 1);
        let RelocationTarget::Symbol(symbol) = relocations[0].1.target() else { panic!("not a symbol") };
        assert_eq!(file.symbol_by_index(symbol)?.name()?, "EVENTS");
        Ok(())
    }
}
